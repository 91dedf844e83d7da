//! The limit of surprise that follows what is chosen.

use super::candidates::{Candidates, total_weight};
use super::ln::ln;
use super::settings;
use std::f64::consts::LN_2;

/// Part of the draw and not a step: what it learns is how surprising the drawn token was, which no other place knows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mirostat {
    settings: settings::Mirostat,
    /// Bits.
    limit: f64,
    /// The token that was chosen last and its surprise, until a token is accepted.
    chosen: Option<(u32, f64)>,
}

impl Mirostat {
    pub(super) fn new(settings: settings::Mirostat) -> Mirostat {
        Mirostat {
            settings,
            limit: 2.0 * f64::from(settings.tau),
            chosen: None,
        }
    }

    /// Removes what is more surprising than the limit; the best stays.
    pub(super) fn cut(&self, candidates: &mut Candidates) {
        let best = candidates.best_logit();
        let log_total = ln(total_weight(candidates, best));
        candidates.retain(|candidate| {
            let below_best = f64::from(best) - f64::from(candidate.logit);
            below_best <= 0.0 || (log_total + below_best) / LN_2 <= self.limit
        });
    }

    /// Learns what was drawn of those that the cut left.
    pub(super) fn drawn(&mut self, candidates: &mut Candidates, token: u32) {
        let best = candidates.best_logit();
        let log_total = ln(total_weight(candidates, best));
        let mut found = candidates.as_slice().iter();
        self.chosen = found
            .find(|candidate| candidate.token == token)
            .map(|candidate| {
                let below_best = f64::from(best) - f64::from(candidate.logit);
                (token, (log_total + below_best) / LN_2)
            });
    }

    /// Moves the limit, unless the token is another one than was drawn: nobody knows its surprise.
    pub(super) fn accept(&mut self, token: u32) {
        if let Some((chosen, surprise)) = self.chosen.take()
            && chosen == token
        {
            let off = surprise - f64::from(self.settings.tau);
            self.limit -= f64::from(self.settings.eta) * off;
        }
    }
}

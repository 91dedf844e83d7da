//! The tokens that may be chosen.

use super::exp::exp;
use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its logit, always finite.
    pub logit: f32,
}

/// The tokens that may be chosen. One that is removed is gone for good: nothing brings it back.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    entries: Vec<Candidate>,
    /// So many at the front are the best ones, best first.
    sorted: usize,
    /// Whether all lie in the order of token ids; none is best first then.
    in_token_order: bool,
}

impl Candidates {
    /// One candidate per logit of the model, all finite, in the order of token ids. Zero comes once, as -0 + 0 is 0.
    pub(super) fn fill(&mut self, logits: &[f32]) {
        self.entries.clear();
        self.sorted = 0;
        self.in_token_order = true;
        self.entries
            .extend((0u32..).zip(logits).map(|(token, logit)| Candidate {
                token,
                logit: *logit + 0.0,
            }));
    }

    /// Number of candidates.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All candidates, in no particular order.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.entries
    }

    /// The `count` best, best first: higher logits, then lower ids.
    pub fn best(&mut self, count: usize) -> &[Candidate] {
        let count = count.min(self.entries.len());
        if count > self.sorted {
            let rest = self.entries.get_mut(self.sorted..).unwrap_or_default();
            let new = count - self.sorted;
            move_best_to_front(rest, new);
            rest.get_mut(..new)
                .unwrap_or_default()
                .sort_unstable_by(better);
            self.sorted = count;
            self.in_token_order = false;
        }
        self.entries.get(..count).unwrap_or_default()
    }

    /// Keeps the `count` best, at least one.
    pub fn keep_best(&mut self, count: usize) {
        let count = count.max(1);
        self.best(count);
        self.entries.truncate(count);
        self.sorted = self.sorted.min(self.entries.len());
    }

    /// Keeps those that `keep` wants; none if it wants none.
    pub fn retain(&mut self, keep: impl Fn(Candidate) -> bool) {
        let mut at = 0;
        let (sorted, mut still_sorted) = (self.sorted, 0);
        self.entries.retain(|entry| {
            let kept = keep(*entry);
            still_sorted += usize::from(kept && at < sorted);
            at += 1;
            kept
        });
        self.sorted = still_sorted;
    }

    /// Removes these tokens, as far as they are there.
    pub fn forbid(&mut self, tokens: &[u32]) {
        for token in tokens {
            if let Some(entry) = self.entry(*token) {
                entry.logit = f32::NEG_INFINITY;
            }
        }
        self.remove_forbidden();
    }

    /// Gives each candidate the logit `change` answers. Minus infinity removes it; infinity is the highest number, what is
    /// no number the lowest, which is very unlikely but may still be chosen.
    pub fn adjust(&mut self, change: impl Fn(Candidate) -> f32) {
        let mut forbids = false;
        for entry in &mut self.entries {
            entry.logit = answered(change(*entry));
            forbids |= entry.logit == f32::NEG_INFINITY;
        }
        self.sorted = 0;
        if forbids {
            self.remove_forbidden();
        }
    }

    /// Gives one candidate, if it is there, the logit `change` answers, as [`adjust`](Self::adjust) does. To remove many,
    /// [`forbid`](Self::forbid) is faster.
    pub fn adjust_token(&mut self, token: u32, change: impl Fn(f32) -> f32) {
        let Some(entry) = self.entry(token) else {
            return;
        };
        entry.logit = answered(change(entry.logit));
        if entry.logit == f32::NEG_INFINITY {
            self.remove_forbidden();
        }
    }

    /// The candidate of a token, to be changed: all are then in the order of token ids, none best first.
    fn entry(&mut self, token: u32) -> Option<&mut Candidate> {
        self.sort_by_token();
        // Where none was removed before it, it lies at the place of its id.
        let at = match self.entries.get(token as usize) {
            Some(entry) if entry.token == token => token as usize,
            _ => {
                let found = self
                    .entries
                    .binary_search_by_key(&token, |entry| entry.token);
                found.ok()?
            }
        };
        self.entries.get_mut(at)
    }

    fn sort_by_token(&mut self) {
        if !self.in_token_order {
            self.entries.sort_unstable_by_key(|entry| entry.token);
            self.sorted = 0;
            self.in_token_order = true;
        }
    }

    /// Puts them into an order that does not depend on how many were sorted before: what is summed over them has the same
    /// bits then.
    pub(super) fn fix_order(&mut self) {
        if self.sorted != self.len() {
            self.sort_by_token();
        }
    }

    fn remove_forbidden(&mut self) {
        self.retain(|candidate| candidate.logit != f32::NEG_INFINITY);
    }

    /// The highest logit.
    pub fn best_logit(&self) -> f32 {
        let higher = |a: f32, b: f32| if b > a { b } else { a };
        // Comparisons in lanes of their own: they need not wait for each other.
        let mut lanes = [f32::MIN; 16];
        let (whole, rest) = self.entries.as_chunks::<16>();
        for entries in whole {
            for (lane, entry) in lanes.iter_mut().zip(entries) {
                *lane = higher(*lane, entry.logit);
            }
        }
        let rest = rest.iter().map(|entry| entry.logit);
        rest.chain(lanes).fold(f32::MIN, higher)
    }
}

/// What a step's answer counts as: minus infinity, which forbids, or the nearest number, the lowest for NaN. NaN itself
/// would sort differently on different CPUs, which give it different signs. Zero comes once, as -0 + 0 is 0.
fn answered(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::MIN
    } else {
        logit.min(f32::MAX) + 0.0
    }
}

fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Moves the `count` best entries, at least one, before all others.
fn move_best_to_front(entries: &mut [Candidate], count: usize) {
    // The best so far, and room for as many that may be better: most entries are only looked at.
    let room = (2 * count).min(entries.len());
    let (mut found, mut index) = (room, room);
    loop {
        let candidates = entries.get_mut(..found).unwrap_or_default();
        if count < candidates.len() {
            candidates.select_nth_unstable_by(count - 1, better);
        }
        let Some(last) = candidates.get(count - 1).copied() else {
            return;
        };
        found = count;
        while found < room {
            let rest = entries.get(index..).unwrap_or_default();
            // Enough to tell for almost all.
            let is_worse = |entry: &Candidate| entry.logit < last.logit;
            let Some(skipped) = rest.iter().position(|entry| !is_worse(entry)) else {
                index = entries.len();
                break;
            };
            index += skipped;
            entries.swap(found, index);
            (found, index) = (found + 1, index + 1);
        }
        if found == count {
            return;
        }
    }
}

/// Unnormalised probability.
#[inline(always)]
pub(super) fn weight(candidate: &Candidate, best_logit: f32) -> f64 {
    exp(f64::from(candidate.logit) - f64::from(best_logit))
}

/// Candidates with their [`weight`], several of which are computed at once.
pub(super) fn weights(
    candidates: &[Candidate],
    best_logit: f32,
) -> impl Iterator<Item = (&Candidate, f64)> {
    const AT_ONCE: usize = 16;
    candidates.chunks(AT_ONCE).flat_map(move |candidates| {
        let mut weights = [0.0; AT_ONCE];
        for (out, candidate) in weights.iter_mut().zip(candidates) {
            *out = weight(candidate, best_logit);
        }
        candidates.iter().zip(weights)
    })
}

/// The sum of all weights, added in the order of token ids, or best first where all are sorted: the order must not depend
/// on how many were sorted before.
pub(super) fn total_weight(candidates: &mut Candidates, best: f32) -> f64 {
    candidates.fix_order();
    weights(&candidates.entries, best)
        .map(|(_, weight)| weight)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Few different logits, so that many are equal.
        #[test]
        fn the_best_are_those_that_sorting_finds(
            logits in proptest::collection::vec((0i8..20).prop_map(f32::from), 1..2000),
            counts in proptest::collection::vec(1usize..400, 1..4),
        ) {
            let mut candidates = Candidates::default();
            candidates.fill(&logits);
            let mut sorted = candidates.entries.clone();
            sorted.sort_by(better);
            for count in counts {
                let count = count.min(logits.len());
                prop_assert_eq!(candidates.best(count), &sorted[..count]);
            }
            // None was lost on the way.
            prop_assert_eq!(candidates.best(logits.len()), &sorted[..]);
            prop_assert_eq!(candidates.best_logit(), sorted[0].logit);
        }
    }

    #[test]
    fn weights_come_in_order_whatever_is_computed_at_once() {
        for len in [0, 1, 15, 16, 17, 40] {
            let logits: Vec<f32> = (0u8..len).map(|id| f32::from(id) / 7.0).collect();
            let mut candidates = Candidates::default();
            candidates.fill(&logits);
            let found: Vec<(u32, f64)> = weights(&candidates.entries, 3.0)
                .map(|(candidate, weight)| (candidate.token, weight))
                .collect();
            let expected: Vec<(u32, f64)> = candidates
                .entries
                .iter()
                .map(|candidate| (candidate.token, weight(candidate, 3.0)))
                .collect();
            assert_eq!(found, expected);
        }
    }
}

//! Which backends a request goes to, in which order. Pure: the same policy and situation give the same plan.

use crate::backend::BackendKind;
use crate::decision::{Reason, Refusal};
use crate::request::PromptKind;
use serde::Serialize;

/// Which backends are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingMode {
    /// Never leave the device.
    LocalOnly,
    /// The device as long as the limits allow it, else the endpoint.
    #[default]
    PreferLocal,
    /// The endpoint, and the device when the endpoint fails.
    PreferCloud,
    /// Never compute on the device.
    CloudOnly,
}

/// What a router goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Which backend is wanted.
    pub mode: RoutingMode,
    /// Longer prompts go to the endpoint, and to it alone: a limit says that the device takes too long over
    /// them. It does not hold for requests that may not leave the device.
    pub max_local_prompt_tokens: Option<usize>,
    /// Where the device would take longer to its first token, by the speed it was seen to have, the endpoint is
    /// asked first. The device still takes over when the endpoint fails.
    pub max_first_token_ms: Option<u64>,
}

/// What there is to decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation<'a> {
    /// The request may not leave the device.
    pub on_device_only: bool,
    /// What is asked.
    pub prompt: PromptKind,
    /// Whether a model may leave the oldest turns out when the prompt does not fit.
    pub may_forget: bool,
    /// Who could be asked, the first of each kind being preferred.
    pub candidates: &'a [Candidate],
}

/// A backend that could be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whether it leaves the device.
    pub kind: BackendKind,
    /// Whether it takes such a prompt.
    pub takes_prompt: bool,
    /// Tokens of the prompt, where they can be counted before.
    pub prompt_tokens: Option<usize>,
    /// Tokens that its context holds, where that is known.
    pub context_tokens: Option<usize>,
    /// How long it is expected to take to its first token; `None` before anything was measured.
    pub predicted_first_token_ms: Option<u64>,
}

/// Who is asked, in which order, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Places in [`Situation::candidates`]. The second is asked when the first fails before its first text, and so on.
    pub order: Vec<usize>,
    /// Why the first one is first.
    pub reason: Reason,
}

/// How well a candidate suits.
#[derive(Clone, Copy)]
enum Fit {
    Good,
    /// After everybody else whom this is not true of.
    Late(Reason),
    /// Only when there is nobody else.
    LastResort(Reason),
    /// Never.
    Out(Reason),
}

impl Fit {
    fn objection(self) -> Option<Reason> {
        match self {
            Fit::Good => None,
            Fit::Late(reason) | Fit::LastResort(reason) | Fit::Out(reason) => Some(reason),
        }
    }
}

impl Policy {
    /// Decides.
    ///
    /// # Errors
    /// [`Refusal`] when no backend may or can answer.
    pub fn plan(&self, situation: &Situation<'_>) -> Result<Plan, Refusal> {
        if self.mode == RoutingMode::CloudOnly && situation.on_device_only {
            return Err(Refusal::OnDeviceOnly);
        }
        let options = Options::of(self, situation);
        let order = options.order(self.mode);
        match order.first() {
            Some(&first) => Ok(Plan {
                reason: self.reason(situation, &options, first),
                order,
            }),
            None => {
                let may_leave = self.allows(BackendKind::Cloud, situation.on_device_only);
                Err(options.refusal(situation, may_leave))
            }
        }
    }

    /// Whether such a backend may answer at all.
    pub(crate) fn allows(&self, kind: BackendKind, on_device_only: bool) -> bool {
        match kind {
            BackendKind::Local => self.mode != RoutingMode::CloudOnly,
            BackendKind::Cloud => !on_device_only && self.mode != RoutingMode::LocalOnly,
        }
    }

    /// How well the device suits, where an endpoint may answer instead or not.
    fn fit(&self, candidate: &Candidate, may_forget: bool, has_cloud: bool) -> Fit {
        let prompt_tokens = candidate.prompt_tokens.unwrap_or(0);
        if let Some(context_tokens) = over_context(candidate) {
            let reason = Reason::PromptOverContext {
                prompt_tokens,
                context_tokens,
            };
            return match may_forget {
                true => Fit::LastResort(reason),
                false => Fit::Out(reason),
            };
        }
        if let Some(max_local_prompt_tokens) = self.max_local_prompt_tokens
            && prompt_tokens > max_local_prompt_tokens
            && has_cloud
        {
            return Fit::Out(Reason::PromptOverLimit {
                prompt_tokens,
                max_local_prompt_tokens,
            });
        }
        match (candidate.predicted_first_token_ms, self.max_first_token_ms) {
            (Some(predicted_ms), Some(max_first_token_ms)) if predicted_ms > max_first_token_ms => {
                Fit::Late(Reason::TooSlow {
                    predicted_ms,
                    max_first_token_ms,
                })
            }
            _ => Fit::Good,
        }
    }

    /// Why the first one is first.
    fn reason(&self, situation: &Situation<'_>, options: &Options, first: usize) -> Reason {
        let not_taken = |by| Reason::NotTaken {
            by,
            prompt: situation.prompt,
        };
        if situation.on_device_only {
            return Reason::OnDeviceOnly;
        }
        if matches!(self.mode, RoutingMode::LocalOnly | RoutingMode::CloudOnly) {
            return Reason::Mode;
        }
        let mut objections = options
            .locals
            .iter()
            .filter_map(|(place, fit)| Some((*place, fit.objection()?)));
        if options.locals.iter().any(|(place, _)| *place == first) {
            // It takes the place of one that stands before it, or of an endpoint, or of nobody.
            let passed_over = objections.find(|(place, _)| *place < first);
            return match (passed_over, options.clouds.is_empty()) {
                (Some((_, reason)), _) => reason,
                (None, false) => Reason::Mode,
                (None, true) if options.unsuited.contains(&BackendKind::Cloud) => {
                    not_taken(BackendKind::Cloud)
                }
                (None, true) => Reason::NoEndpoint,
            };
        }
        let nobody_stays = options
            .locals
            .iter()
            .all(|(_, fit)| matches!(fit, Fit::Out(_) | Fit::LastResort(_)));
        match objections.next() {
            None if options.unsuited.contains(&BackendKind::Local) => not_taken(BackendKind::Local),
            None if options.locals.is_empty() => Reason::NoLocalModel,
            Some((_, reason)) if nobody_stays || self.mode != RoutingMode::PreferCloud => reason,
            _ => Reason::Mode,
        }
    }
}

/// Who may be asked, by kind, in the order of the list.
struct Options {
    /// Those on the device that take the prompt.
    locals: Vec<(usize, Fit)>,
    /// Those off the device that take the prompt and have room for it.
    clouds: Vec<usize>,
    /// Kinds of those that may be asked but do not take such a prompt.
    unsuited: Vec<BackendKind>,
}

impl Options {
    fn of(policy: &Policy, situation: &Situation<'_>) -> Options {
        let candidates = || {
            let all = situation.candidates.iter().enumerate();
            all.filter(|(_, candidate)| policy.allows(candidate.kind, situation.on_device_only))
        };
        let of_kind = |kind| {
            candidates()
                .filter(move |(_, candidate)| candidate.takes_prompt && candidate.kind == kind)
        };
        let clouds: Vec<usize> = of_kind(BackendKind::Cloud)
            .filter(|(_, candidate)| over_context(candidate).is_none())
            .map(|(place, _)| place)
            .collect();
        Options {
            locals: of_kind(BackendKind::Local)
                .map(|(place, candidate)| {
                    let fit = policy.fit(candidate, situation.may_forget, !clouds.is_empty());
                    (place, fit)
                })
                .collect(),
            clouds,
            unsuited: candidates()
                .filter(|(_, candidate)| !candidate.takes_prompt)
                .map(|(_, candidate)| candidate.kind)
                .collect(),
        }
    }

    /// Who is asked, one after the other.
    fn order(&self, mode: RoutingMode) -> Vec<usize> {
        let with = |suits: fn(&Fit) -> bool| -> Vec<usize> {
            let those = self.locals.iter().filter(move |(_, fit)| suits(fit));
            those.map(|(place, _)| *place).collect()
        };
        let good = with(|fit| matches!(fit, Fit::Good));
        let late = with(|fit| matches!(fit, Fit::Late(_)));
        let order = match mode {
            RoutingMode::PreferCloud => [self.clouds.clone(), good, late],
            _ => [good, self.clouds.clone(), late],
        }
        .concat();
        match order.is_empty() {
            true => with(|fit| matches!(fit, Fit::LastResort(_))),
            false => order,
        }
    }

    /// Why nobody is asked.
    fn refusal(&self, situation: &Situation<'_>, may_leave: bool) -> Refusal {
        let too_long = situation
            .candidates
            .iter()
            .enumerate()
            .filter(|(place, _)| self.locals.iter().any(|(local, _)| local == place))
            .filter_map(|(_, candidate)| {
                Some((candidate.prompt_tokens?, over_context(candidate)?))
            });
        // The one that came closest to answering.
        if let Some((prompt_tokens, context_tokens)) = too_long.max_by_key(|(_, context)| *context)
        {
            return Refusal::PromptOverContext {
                prompt_tokens,
                context_tokens,
                may_leave,
            };
        }
        let unsuited = [BackendKind::Cloud, BackendKind::Local];
        match unsuited
            .into_iter()
            .find(|kind| self.unsuited.contains(kind))
        {
            Some(by) => Refusal::NotTaken {
                by,
                prompt: situation.prompt,
            },
            None if may_leave => Refusal::NoEndpoint,
            None => Refusal::NoLocalModel,
        }
    }
}

/// Tokens of the context that the prompt leaves no room in; `None` when it has room.
fn over_context(candidate: &Candidate) -> Option<usize> {
    let context_tokens = candidate.context_tokens?;
    (candidate.prompt_tokens? >= context_tokens).then_some(context_tokens)
}

#[cfg(test)]
mod tests;

//! Which backend a request goes to. Pure: the same policy and situation give the same plan.

use super::decision::{Backend, Reason, Refusal};
use serde::Serialize;

/// Which backend is wanted.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// The request may not leave the device.
    pub on_device_only: bool,
    /// There is a model on the device.
    pub has_local: bool,
    /// There is an endpoint.
    pub has_cloud: bool,
    /// Tokens of the prompt, by the device's model; 0 where there is none.
    pub prompt_tokens: usize,
    /// Tokens that the device's context holds.
    pub context_tokens: usize,
    /// Whether the device may leave the oldest turns out when the prompt does not fit.
    pub may_forget: bool,
    /// How long the device is expected to take to its first token; `None` before anything was measured.
    pub predicted_first_token_ms: Option<u64>,
}

/// Who is asked, in which order, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Asked first.
    pub first: Backend,
    /// Asked when the first one fails before its first token.
    pub fallback: Option<Backend>,
    /// Why the first one is first.
    pub reason: Reason,
}

impl Policy {
    /// Decides.
    ///
    /// # Errors
    /// [`Refusal`] when no backend may or can answer.
    pub fn plan(&self, situation: &Situation) -> Result<Plan, Refusal> {
        let &Situation {
            on_device_only,
            has_local,
            has_cloud,
            prompt_tokens,
            context_tokens,
            may_forget,
            predicted_first_token_ms,
        } = situation;
        if self.mode == RoutingMode::CloudOnly && on_device_only {
            return Err(Refusal::OnDeviceOnly);
        }
        let over_context = has_local && prompt_tokens >= context_tokens;
        let local = has_local && self.mode != RoutingMode::CloudOnly;
        let fits = local && (!over_context || may_forget);
        let may_leave = !on_device_only && self.mode != RoutingMode::LocalOnly;
        let cloud = has_cloud && may_leave;

        let only = |first, reason| {
            Ok(Plan {
                first,
                fallback: None,
                reason,
            })
        };
        match (fits, cloud) {
            (false, false) if over_context && local => Err(Refusal::PromptOverContext {
                prompt_tokens,
                context_tokens,
                may_leave,
            }),
            (false, false) if local || !may_leave => Err(Refusal::NoLocalModel),
            (false, false) => Err(Refusal::NoEndpoint),
            (true, false) if on_device_only => only(Backend::Local, Reason::OnDeviceOnly),
            (true, false) if !may_leave => only(Backend::Local, Reason::Mode),
            (true, false) => only(Backend::Local, Reason::NoEndpoint),
            (false, true) if self.mode == RoutingMode::CloudOnly => {
                only(Backend::Cloud, Reason::Mode)
            }
            (_, true) if local && over_context => only(
                Backend::Cloud,
                Reason::PromptOverContext {
                    prompt_tokens,
                    context_tokens,
                },
            ),
            (false, true) => only(Backend::Cloud, Reason::NoLocalModel),
            (true, true) => Ok(self.plan_between(prompt_tokens, predicted_first_token_ms)),
        }
    }

    /// Both backends may and can.
    fn plan_between(&self, prompt_tokens: usize, predicted_first_token_ms: Option<u64>) -> Plan {
        let over_limit = self
            .max_local_prompt_tokens
            .filter(|limit| prompt_tokens > *limit);
        if let Some(max_local_prompt_tokens) = over_limit {
            return Plan {
                first: Backend::Cloud,
                fallback: None,
                reason: Reason::PromptOverLimit {
                    prompt_tokens,
                    max_local_prompt_tokens,
                },
            };
        }
        let cloud_first = |reason| Plan {
            first: Backend::Cloud,
            fallback: Some(Backend::Local),
            reason,
        };
        if self.mode == RoutingMode::PreferCloud {
            return cloud_first(Reason::Mode);
        }
        match (predicted_first_token_ms, self.max_first_token_ms) {
            (Some(predicted_ms), Some(max_first_token_ms)) if predicted_ms > max_first_token_ms => {
                cloud_first(Reason::TooSlow {
                    predicted_ms,
                    max_first_token_ms,
                })
            }
            _ => Plan {
                first: Backend::Local,
                fallback: Some(Backend::Cloud),
                reason: Reason::Mode,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Backend::{Cloud, Local};
    use super::RoutingMode::{CloudOnly, LocalOnly, PreferCloud, PreferLocal};
    use super::*;
    use proptest::prelude::*;

    const BOTH: Situation = Situation {
        on_device_only: false,
        has_local: true,
        has_cloud: true,
        prompt_tokens: 50,
        context_tokens: 100,
        may_forget: false,
        predicted_first_token_ms: None,
    };

    fn policy(mode: RoutingMode) -> Policy {
        Policy {
            mode,
            max_local_prompt_tokens: Some(80),
            max_first_token_ms: Some(1000),
        }
    }

    /// First, fallback and reason of every mode, in the order of [`MODES`].
    type Row = [Result<(Backend, Option<Backend>, Reason), Refusal>; 4];
    const MODES: [RoutingMode; 4] = [LocalOnly, PreferLocal, PreferCloud, CloudOnly];

    fn row(situation: Situation) -> Row {
        MODES.map(|mode| {
            policy(mode)
                .plan(&situation)
                .map(|plan| (plan.first, plan.fallback, plan.reason))
        })
    }

    #[test]
    fn the_table_of_decisions() {
        let only_local = Ok((Local, None, Reason::Mode));
        let only_cloud = Ok((Cloud, None, Reason::Mode));
        let cloud_first = Ok((Cloud, Some(Local), Reason::Mode));
        assert_eq!(
            row(BOTH),
            [
                only_local,
                Ok((Local, Some(Cloud), Reason::Mode)),
                cloud_first,
                only_cloud
            ]
        );
        let on_device = Ok((Local, None, Reason::OnDeviceOnly));
        assert_eq!(
            row(Situation {
                on_device_only: true,
                ..BOTH
            }),
            [on_device, on_device, on_device, Err(Refusal::OnDeviceOnly)]
        );
        let over_limit = Ok((
            Cloud,
            None,
            Reason::PromptOverLimit {
                prompt_tokens: 81,
                max_local_prompt_tokens: 80,
            },
        ));
        assert_eq!(
            row(Situation {
                prompt_tokens: 81,
                ..BOTH
            }),
            [only_local, over_limit, over_limit, only_cloud]
        );
        assert_eq!(
            row(Situation {
                prompt_tokens: 81,
                on_device_only: true,
                ..BOTH
            })[1],
            on_device
        );
        let (prompt_tokens, context_tokens) = (100, 100);
        let over_context = Ok((
            Cloud,
            None,
            Reason::PromptOverContext {
                prompt_tokens,
                context_tokens,
            },
        ));
        let too_long = |may_leave| {
            Err(Refusal::PromptOverContext {
                prompt_tokens,
                context_tokens,
                may_leave,
            })
        };
        let long = Situation {
            prompt_tokens,
            ..BOTH
        };
        assert_eq!(
            row(long),
            [too_long(false), over_context, over_context, only_cloud]
        );
        assert_eq!(
            row(Situation {
                may_forget: true,
                ..long
            }),
            [only_local, over_context, over_context, only_cloud]
        );
        assert_eq!(
            row(Situation {
                has_cloud: false,
                ..long
            }),
            [
                too_long(false),
                too_long(true),
                too_long(true),
                Err(Refusal::NoEndpoint)
            ]
        );
        assert_eq!(
            row(Situation {
                predicted_first_token_ms: Some(1001),
                ..BOTH
            }),
            [
                only_local,
                Ok((
                    Cloud,
                    Some(Local),
                    Reason::TooSlow {
                        predicted_ms: 1001,
                        max_first_token_ms: 1000
                    }
                )),
                cloud_first,
                only_cloud
            ]
        );
        let no_endpoint = Ok((Local, None, Reason::NoEndpoint));
        assert_eq!(
            row(Situation {
                has_cloud: false,
                ..BOTH
            }),
            [
                only_local,
                no_endpoint,
                no_endpoint,
                Err(Refusal::NoEndpoint)
            ]
        );
        let no_model = Ok((Cloud, None, Reason::NoLocalModel));
        assert_eq!(
            row(Situation {
                has_local: false,
                prompt_tokens: 0,
                context_tokens: 0,
                ..BOTH
            }),
            [Err(Refusal::NoLocalModel), no_model, no_model, only_cloud]
        );
        assert_eq!(
            row(Situation {
                has_local: false,
                has_cloud: false,
                ..BOTH
            }),
            [
                Err(Refusal::NoLocalModel),
                Err(Refusal::NoEndpoint),
                Err(Refusal::NoEndpoint),
                Err(Refusal::NoEndpoint)
            ]
        );
    }

    fn situations() -> impl Strategy<Value = Situation> {
        (
            any::<(bool, bool, bool, bool)>(),
            0usize..200,
            0usize..200,
            proptest::option::of(0u64..2000),
        )
            .prop_map(
                |(flags, prompt_tokens, context_tokens, predicted_first_token_ms)| {
                    let (on_device_only, has_local, has_cloud, may_forget) = flags;
                    Situation {
                        on_device_only,
                        has_local,
                        has_cloud,
                        prompt_tokens,
                        context_tokens,
                        may_forget,
                        predicted_first_token_ms,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn no_plan_breaks_a_promise(
            situation in situations(),
            mode in proptest::sample::select(MODES.to_vec()),
            max_local_prompt_tokens in proptest::option::of(0usize..200),
            max_first_token_ms in proptest::option::of(0u64..2000),
        ) {
            let policy = Policy { mode, max_local_prompt_tokens, max_first_token_ms };
            let plan = policy.plan(&situation);
            let asks = |backend| plan.is_ok_and(|plan| plan.first == backend || plan.fallback == Some(backend));
            if situation.on_device_only || mode == LocalOnly || !situation.has_cloud {
                prop_assert!(!asks(Cloud));
            }
            if mode == CloudOnly || !situation.has_local {
                prop_assert!(!asks(Local));
            }
            if situation.prompt_tokens >= situation.context_tokens && !situation.may_forget {
                prop_assert!(!asks(Local));
            }
            if asks(Cloud) && max_local_prompt_tokens.is_some_and(|limit| situation.prompt_tokens > limit) {
                prop_assert!(!asks(Local));
            }
            prop_assert!(plan.is_err() || plan.is_ok_and(|plan| plan.fallback != Some(plan.first)));
        }
    }
}

//! Which plan a situation leads to.

use super::BackendKind::{Cloud, Local};
use super::RoutingMode::{CloudOnly, LocalOnly, PreferCloud, PreferLocal};
use super::*;
use proptest::prelude::*;

/// One model on the device and one endpoint, or less.
#[derive(Clone, Copy, Debug)]
struct Pair {
    on_device_only: bool,
    has_local: bool,
    has_cloud: bool,
    prompt_tokens: usize,
    context_tokens: usize,
    may_forget: bool,
    predicted_first_token_ms: Option<u64>,
}

impl Pair {
    fn candidates(&self) -> Vec<Candidate> {
        let local = Candidate {
            prompt_tokens: Some(self.prompt_tokens),
            context_tokens: Some(self.context_tokens),
            predicted_first_token_ms: self.predicted_first_token_ms,
            ..ENDPOINT
        };
        let local = Candidate {
            kind: Local,
            ..local
        };
        let both = [(self.has_local, local), (self.has_cloud, ENDPOINT)];
        both.into_iter()
            .filter_map(|(is_there, candidate)| is_there.then_some(candidate))
            .collect()
    }
}

const ENDPOINT: Candidate = Candidate {
    kind: Cloud,
    takes_prompt: true,
    prompt_tokens: None,
    context_tokens: None,
    predicted_first_token_ms: None,
};

/// A model on the device that answers.
const MODEL: Candidate = Candidate {
    kind: Local,
    takes_prompt: true,
    prompt_tokens: Some(50),
    context_tokens: Some(100),
    predicted_first_token_ms: None,
};

const BOTH: Pair = Pair {
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
type Row = [Result<(BackendKind, Option<BackendKind>, Reason), Refusal>; 4];
const MODES: [RoutingMode; 4] = [LocalOnly, PreferLocal, PreferCloud, CloudOnly];

/// Kinds in the order they are asked, and why.
fn plan(policy: &Policy, pair: &Pair) -> Result<(Vec<BackendKind>, Reason), Refusal> {
    let candidates = pair.candidates();
    let plan = policy.plan(&Situation {
        on_device_only: pair.on_device_only,
        prompt: PromptKind::Chat,
        may_forget: pair.may_forget,
        candidates: &candidates,
    })?;
    let kinds = plan.order.iter().map(|place| candidates[*place].kind);
    Ok((kinds.collect(), plan.reason))
}

fn row(pair: Pair) -> Row {
    MODES.map(|mode| {
        plan(&policy(mode), &pair).map(|(kinds, reason)| {
            assert!(kinds.len() <= 2);
            (kinds[0], kinds.get(1).copied(), reason)
        })
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
        row(Pair {
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
        row(Pair {
            prompt_tokens: 81,
            ..BOTH
        }),
        [only_local, over_limit, over_limit, only_cloud]
    );
    assert_eq!(
        row(Pair {
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
    let long = Pair {
        prompt_tokens,
        ..BOTH
    };
    assert_eq!(
        row(long),
        [too_long(false), over_context, over_context, only_cloud]
    );
    assert_eq!(
        row(Pair {
            may_forget: true,
            ..long
        }),
        [only_local, over_context, over_context, only_cloud]
    );
    assert_eq!(
        row(Pair {
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
        row(Pair {
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
        row(Pair {
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
        row(Pair {
            has_local: false,
            prompt_tokens: 0,
            context_tokens: 0,
            ..BOTH
        }),
        [Err(Refusal::NoLocalModel), no_model, no_model, only_cloud]
    );
    assert_eq!(
        row(Pair {
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

fn pairs() -> impl Strategy<Value = Pair> {
    (
        any::<(bool, bool, bool, bool)>(),
        0usize..200,
        0usize..200,
        proptest::option::of(0u64..2000),
    )
        .prop_map(
            |(flags, prompt_tokens, context_tokens, predicted_first_token_ms)| {
                let (on_device_only, has_local, has_cloud, may_forget) = flags;
                Pair {
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
    fn no_plan_between_two_breaks_a_promise(
        pair in pairs(),
        mode in proptest::sample::select(MODES.to_vec()),
        max_local_prompt_tokens in proptest::option::of(0usize..200),
        max_first_token_ms in proptest::option::of(0u64..2000),
    ) {
        let policy = Policy { mode, max_local_prompt_tokens, max_first_token_ms };
        let plan = plan(&policy, &pair);
        let asks = |kind| plan.as_ref().is_ok_and(|(kinds, _)| kinds.contains(&kind));
        if pair.on_device_only || mode == LocalOnly || !pair.has_cloud {
            prop_assert!(!asks(Cloud));
        }
        if mode == CloudOnly || !pair.has_local {
            prop_assert!(!asks(Local));
        }
        if pair.prompt_tokens >= pair.context_tokens && !pair.may_forget {
            prop_assert!(!asks(Local));
        }
        if asks(Cloud) && max_local_prompt_tokens.is_some_and(|limit| pair.prompt_tokens > limit) {
            prop_assert!(!asks(Local));
        }
        prop_assert!(plan.is_err() || plan.is_ok_and(|(kinds, _)| kinds.len() < 2 || kinds[0] != kinds[1]));
    }

    #[test]
    fn no_plan_over_a_list_breaks_a_promise(
        candidates in proptest::collection::vec(candidate(), 0..6),
        on_device_only in any::<bool>(),
        may_forget in any::<bool>(),
        mode in proptest::sample::select(MODES.to_vec()),
        max_local_prompt_tokens in proptest::option::of(0usize..200),
        max_first_token_ms in proptest::option::of(0u64..2000),
    ) {
        let policy = Policy { mode, max_local_prompt_tokens, max_first_token_ms };
        let situation = Situation {
            on_device_only,
            prompt: PromptKind::Plain,
            may_forget,
            candidates: &candidates,
        };
        let Ok(Plan { order, .. }) = policy.plan(&situation) else {
            return Ok(());
        };
        prop_assert!(!order.is_empty());
        let asked: Vec<Candidate> = order.iter().map(|place| candidates[*place]).collect();
        let leaves = asked.iter().any(|candidate| candidate.kind == Cloud);
        prop_assert!(!leaves || !(on_device_only || mode == LocalOnly));
        for (place, candidate) in order.iter().zip(&asked) {
            prop_assert_eq!(order.iter().filter(|other| *other == place).count(), 1);
            prop_assert!(candidate.takes_prompt);
            prop_assert!(candidate.kind == Cloud || mode != CloudOnly);
            let (prompt, context) = (candidate.prompt_tokens, candidate.context_tokens);
            if let (Some(prompt), Some(context)) = (prompt, context) && prompt >= context {
                prop_assert!(may_forget && candidate.kind == Local && !leaves);
            }
            if let (Some(prompt), Some(limit)) = (prompt, max_local_prompt_tokens) && prompt > limit {
                prop_assert!(candidate.kind == Cloud || !leaves);
            }
        }
        // Within a kind the list's order holds for those that no limit is against.
        let slow = |candidate: &Candidate| candidate.predicted_first_token_ms > max_first_token_ms && max_first_token_ms.is_some();
        for kind in [Local, Cloud] {
            let of_kind = order.iter().zip(&asked).filter(|(_, candidate)| candidate.kind == kind && !slow(candidate));
            prop_assert!(of_kind.map(|(place, _)| place).is_sorted());
        }
    }
}

fn candidate() -> impl Strategy<Value = Candidate> {
    (
        any::<(bool, bool)>(),
        proptest::option::of(0usize..200),
        proptest::option::of(0usize..200),
        proptest::option::of(0u64..2000),
    )
        .prop_map(
            |((local, takes_prompt), prompt_tokens, context_tokens, predicted_first_token_ms)| {
                Candidate {
                    kind: if local { Local } else { Cloud },
                    takes_prompt,
                    prompt_tokens,
                    context_tokens,
                    predicted_first_token_ms: predicted_first_token_ms.filter(|_| local),
                }
            },
        )
}

fn planned(mode: RoutingMode, candidates: &[Candidate]) -> Result<(Vec<usize>, Reason), Refusal> {
    let plan = policy(mode).plan(&Situation {
        on_device_only: false,
        prompt: PromptKind::Plain,
        may_forget: false,
        candidates,
    })?;
    Ok((plan.order, plan.reason))
}

#[test]
fn a_list_is_gone_through_kind_by_kind_in_its_order() {
    let list = [ENDPOINT, MODEL, ENDPOINT, MODEL];
    let order = |mode| planned(mode, &list).unwrap();
    assert_eq!(order(LocalOnly), (vec![1, 3], Reason::Mode));
    assert_eq!(order(PreferLocal), (vec![1, 3, 0, 2], Reason::Mode));
    assert_eq!(order(PreferCloud), (vec![0, 2, 1, 3], Reason::Mode));
    assert_eq!(order(CloudOnly), (vec![0, 2], Reason::Mode));
    let models = [MODEL, MODEL];
    let no_endpoint = Ok((vec![0, 1], Reason::NoEndpoint));
    assert_eq!(planned(PreferLocal, &models), no_endpoint);
}

#[test]
fn a_model_that_a_limit_is_against_makes_way_for_the_next() {
    let small = Candidate {
        context_tokens: Some(40),
        ..MODEL
    };
    let over_context = Reason::PromptOverContext {
        prompt_tokens: 50,
        context_tokens: 40,
    };
    assert_eq!(
        planned(PreferLocal, &[small, MODEL, ENDPOINT]),
        Ok((vec![1, 2], over_context))
    );
    assert_eq!(
        planned(LocalOnly, &[small, MODEL]),
        Ok((vec![1], Reason::Mode))
    );
    let slow = Candidate {
        predicted_first_token_ms: Some(1001),
        ..MODEL
    };
    let too_slow = Reason::TooSlow {
        predicted_ms: 1001,
        max_first_token_ms: 1000,
    };
    assert_eq!(
        planned(PreferLocal, &[slow, MODEL, ENDPOINT]),
        Ok((vec![1, 2, 0], too_slow))
    );
    // Another tokenizer makes more of it.
    let wordy = Candidate {
        prompt_tokens: Some(81),
        ..MODEL
    };
    let over_limit = Reason::PromptOverLimit {
        prompt_tokens: 81,
        max_local_prompt_tokens: 80,
    };
    assert_eq!(
        planned(PreferLocal, &[wordy, MODEL, ENDPOINT]),
        Ok((vec![1, 2], over_limit))
    );
    assert_eq!(
        planned(PreferLocal, &[small, small]),
        Err(Refusal::PromptOverContext {
            prompt_tokens: 50,
            context_tokens: 40,
            may_leave: true
        })
    );
}

#[test]
fn who_does_not_take_such_a_prompt_is_not_asked_and_named_where_it_was_wanted() {
    let chats_only = Candidate {
        takes_prompt: false,
        ..ENDPOINT
    };
    let by_cloud = Reason::NotTaken {
        by: Cloud,
        prompt: PromptKind::Plain,
    };
    for mode in [PreferLocal, PreferCloud] {
        assert_eq!(planned(mode, &[chats_only, MODEL]), Ok((vec![1], by_cloud)));
    }
    assert_eq!(
        planned(LocalOnly, &[chats_only, MODEL]),
        Ok((vec![1], Reason::Mode))
    );
    for candidates in [&[chats_only][..], &[chats_only, MODEL]] {
        assert_eq!(
            planned(CloudOnly, candidates),
            Err(Refusal::NotTaken {
                by: Cloud,
                prompt: PromptKind::Plain
            })
        );
    }
    let silent = Candidate {
        takes_prompt: false,
        ..MODEL
    };
    assert_eq!(
        planned(PreferLocal, &[silent, ENDPOINT]),
        Ok((
            vec![1],
            Reason::NotTaken {
                by: Local,
                prompt: PromptKind::Plain
            }
        ))
    );
    assert_eq!(
        planned(LocalOnly, &[silent, ENDPOINT]),
        Err(Refusal::NotTaken {
            by: Local,
            prompt: PromptKind::Plain
        })
    );
}

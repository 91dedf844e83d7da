//! Sampling settings of every kind, the extreme ones too.
#![allow(unreachable_pub)]

use niwaki::{RepetitionPenalty, Sampling};
use proptest::prelude::*;

pub fn sampling() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![Just(0f32), Just(1e-30), Just(1.0), Just(1e30), 0.05f32..3.0];
    let top_k = prop_oneof![Just(None), Just(Some(1)), (1usize..40).prop_map(Some)];
    let share = || {
        prop_oneof![
            Just(None),
            Just(Some(f32::MIN_POSITIVE)),
            Just(Some(0.5)),
            Just(Some(1.0)),
            (0.01f32..1.0).prop_map(Some)
        ]
    };
    let factor = prop_oneof![Just(1e-30f32), Just(1e30), 0.5f32..2.0];
    let penalty = (factor, proptest::option::of(0usize..6)).prop_map(|(factor, last_tokens)| {
        RepetitionPenalty {
            factor,
            last_tokens,
        }
    });
    (
        temperature,
        top_k,
        share(),
        share(),
        proptest::option::of(penalty),
        any::<u64>(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                seed,
            },
        )
}

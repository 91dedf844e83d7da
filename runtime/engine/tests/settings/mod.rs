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
        RepetitionPenalty::new(factor).with_last_tokens(last_tokens)
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
            |(temperature, top_k, top_p, min_p, repetition_penalty, seed)| {
                Sampling::GREEDY
                    .with_temperature(temperature)
                    .with_top_k(top_k)
                    .with_top_p(top_p)
                    .with_min_p(min_p)
                    .with_repetition_penalty(repetition_penalty)
                    .with_seed(seed)
            },
        )
}

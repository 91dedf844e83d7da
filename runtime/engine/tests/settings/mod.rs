//! Sampling settings of every kind, the extreme ones too.
#![allow(unreachable_pub)]

use niwaki::{Dry, Mirostat, RepetitionPenalty, Sampling, Xtc};
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
        proptest::option::weighted(0.7, more()),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, repetition_penalty, seed, more)| {
                more.unwrap_or(Sampling::GREEDY)
                    .with_temperature(temperature)
                    .with_top_k(top_k)
                    .with_top_p(top_p)
                    .with_min_p(min_p)
                    .with_repetition_penalty(repetition_penalty)
                    .with_seed(seed)
            },
        )
}

/// The settings that no model has a default for.
fn more() -> impl Strategy<Value = Sampling> {
    use proptest::option::of;
    let number = || prop_oneof![Just(-3e38f32), Just(0.0), Just(3e38), -2f32..2.0];
    let dry = (0f32..5.0, 1f32..3.0, 1usize..4, of(0usize..8)).prop_map(
        |(multiplier, base, allowed_length, last_tokens)| {
            let mut dry = Dry::new(multiplier);
            dry.base = base;
            dry.allowed_length = allowed_length;
            dry.last_tokens = last_tokens;
            dry.breakers = vec![2];
            dry
        },
    );
    let positive = || prop_oneof![Just(f32::MIN_POSITIVE), Just(3e38f32), 0.01f32..5.0];
    let share = || prop_oneof![Just(0f32), Just(1.0), 0f32..1.0];
    (
        proptest::collection::vec((0u32..60, number()), 0..4),
        number(),
        number(),
        of(dry),
        of(positive()),
        of(0.01f32..1.0),
        of((share(), share())),
        of((positive(), positive())),
    )
        .prop_map(
            |(bias, frequency, presence, dry, sigmas, typical, xtc, mirostat)| {
                Sampling::GREEDY
                    .with_logit_bias(bias)
                    .with_frequency_penalty(frequency)
                    .with_presence_penalty(presence)
                    .with_dry(dry)
                    .with_top_n_sigma(sigmas)
                    .with_typical_p(typical)
                    .with_xtc(xtc.map(|(probability, threshold)| Xtc::new(probability, threshold)))
                    .with_mirostat(mirostat.map(|(tau, eta)| Mirostat::new(tau, eta)))
            },
        )
}

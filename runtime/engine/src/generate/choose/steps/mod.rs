//! The steps that settings ask for.

mod constraints;
mod dry;
mod penalties;
mod temperature;
mod truncation;
mod xtc;

use super::settings::Sampling;
use super::step::SamplingStep;

/// The steps of checked settings.
pub(super) fn of(sampling: &Sampling) -> Vec<Box<dyn SamplingStep>> {
    let mut steps: Vec<Box<dyn SamplingStep>> = Vec::new();
    if !sampling.banned_tokens.is_empty() {
        steps.push(Box::new(constraints::Banned(
            sampling.banned_tokens.clone(),
        )));
    }
    if !sampling.forced_tokens.is_empty() {
        steps.push(Box::new(constraints::Forced::new(&sampling.forced_tokens)));
    }
    if let Some(length) = sampling.no_repeat_ngram {
        steps.push(Box::new(constraints::NoRepeat::new(length)));
    }
    if !sampling.logit_bias.is_empty() {
        steps.push(Box::new(penalties::Bias::new(&sampling.logit_bias)));
    }
    if let Some(penalty) = sampling.repetition_penalty.filter(|p| p.factor != 1.0) {
        steps.push(Box::new(penalties::Repetition::new(penalty)));
    }
    let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
    if frequency != 0.0 || presence != 0.0 {
        steps.push(Box::new(penalties::Generated::new(frequency, presence)));
    }
    if let Some(dry) = sampling.dry.as_ref().filter(|dry| dry.multiplier > 0.0) {
        steps.push(Box::new(dry::Dry::new(dry.clone())));
    }
    // What follows never changes which one is the best, or is there to avoid it.
    if sampling.temperature == 0.0 {
        return steps;
    }
    if sampling.temperature != 1.0 {
        steps.push(Box::new(temperature::Temperature(sampling.temperature)));
    }
    if let Some(sigmas) = sampling.top_n_sigma {
        steps.push(Box::new(truncation::TopNSigma(sigmas)));
    }
    if let Some(k) = sampling.top_k {
        steps.push(Box::new(truncation::TopK(k)));
    }
    if let Some(p) = sampling.top_p {
        steps.push(Box::new(truncation::TopP(p)));
    }
    if let Some(p) = sampling.min_p {
        steps.push(Box::new(truncation::MinP(p)));
    }
    if let Some(p) = sampling.typical_p {
        steps.push(Box::new(truncation::Typical(p)));
    }
    if let Some(xtc) = sampling.xtc.filter(|xtc| xtc.probability > 0.0) {
        steps.push(Box::new(xtc::ExcludeTop::new(xtc, sampling.seed)));
    }
    steps
}

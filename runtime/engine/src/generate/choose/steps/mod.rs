//! The steps that settings ask for.

mod penalties;
mod temperature;
mod truncation;

use super::settings::Sampling;
use super::step::SamplingStep;

/// The steps of checked settings.
pub(super) fn of(sampling: &Sampling) -> Vec<Box<dyn SamplingStep>> {
    let mut steps: Vec<Box<dyn SamplingStep>> = Vec::new();
    if let Some(penalty) = sampling.repetition_penalty.filter(|p| p.factor != 1.0) {
        steps.push(Box::new(penalties::Repetition::new(penalty)));
    }
    // What follows never changes which one is the best.
    if sampling.temperature == 0.0 {
        return steps;
    }
    if sampling.temperature != 1.0 {
        steps.push(Box::new(temperature::Temperature(sampling.temperature)));
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
    steps
}

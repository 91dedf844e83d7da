//! What logits count as that a model gives.

/// The one place that says what a model's logit counts as: what is no finite number is a mistake of the model and counts as
/// the lowest number, so it is never chosen before a finite one. Zero comes once, as -0 + 0 is 0.
///
/// What a *step* answers is another matter: [`Candidates::adjust`](super::Candidates::adjust).
pub(super) fn number(logit: f32) -> f32 {
    if logit.is_finite() {
        logit + 0.0
    } else {
        f32::MIN
    }
}

/// The place of the highest logit, the first of equals. `None` where there is none, or it is not finite: then
/// it takes a closer look. NaN is never the highest.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    const LANES: usize = 16;
    /// Short enough that looking for the place in one block costs nothing.
    const BLOCK: usize = 1024;
    let (mut highest, mut block) = (f32::NEG_INFINITY, None);
    for (index, values) in logits.chunks(BLOCK).enumerate() {
        // Comparisons in lanes of their own: one vector instruction each.
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        let of_block = rest
            .iter()
            .chain(&lanes)
            .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        if of_block > highest {
            (highest, block) = (of_block, Some(index * BLOCK));
        }
    }
    let from = block.filter(|_| highest.is_finite())?;
    let place = logits
        .get(from..)?
        .iter()
        .position(|value| *value == highest)?;
    u32::try_from(from + place).ok()
}

//! The logits as a model gives them.

/// The first token whose logit is no finite number, which is a mistake of the model.
///
/// What a *step* answers is another matter: [`Candidates::adjust`](super::Candidates::adjust).
pub(in crate::generate) fn first_not_finite(logits: &[f32]) -> Option<u32> {
    // The largest magnitude of all first, without a branch: almost always there is none to look for.
    let magnitude = |logit: &f32| (logit.to_bits() & 0x7fff_ffff) as i32;
    let largest = logits.iter().map(magnitude).fold(0, i32::max);
    if largest < f32::INFINITY.to_bits() as i32 {
        return None;
    }
    let place = logits.iter().position(|logit| !logit.is_finite())?;
    u32::try_from(place).ok()
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

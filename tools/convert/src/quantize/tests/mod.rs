//! What quantizers do to a matrix, and what the rewrite leaves of a graph.

mod any_operator;
mod methods;
mod rewrite;

/// Numbers without a pattern, about normally distributed.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count)
        .map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.2)
        .collect()
}

//! How fast this machine reads memory: the limit of decoding, which reads every weight once per token.

use std::time::Instant;

/// Least size of the buffer that is read.
const LEAST_BYTES: usize = 256 << 20;
/// Largest size, however large the caches are.
const MOST_BYTES: usize = 1 << 30;
/// The best of this many passes counts: others were disturbed.
const PASSES: usize = 5;

/// Bytes per second that `threads` threads read from a buffer larger than the caches; `None` when there is no
/// memory for it.
pub fn read_bandwidth(threads: usize) -> Option<f64> {
    let words = largest_cache_bytes()
        .saturating_mul(4)
        .clamp(LEAST_BYTES, MOST_BYTES)
        / size_of::<u64>();
    let mut buffer: Vec<u64> = Vec::new();
    buffer.try_reserve_exact(words).ok()?;
    // Not zeros: the system would map one page of zeros again and again.
    buffer.extend((0..words as u64).map(|word| word | 1));
    let part = words.div_ceil(threads.max(1));
    let best_s = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for part in buffer.chunks(part) {
                    scope.spawn(|| std::hint::black_box(sum(part)));
                }
            });
            start.elapsed().as_secs_f64()
        })
        .min_by(f64::total_cmp)?;
    Some((words * size_of::<u64>()) as f64 / best_s)
}

/// Reads all of `words`, in sums that do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    let mut chunks = words.chunks_exact(sums.len());
    for chunk in &mut chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    let rest = chunks.remainder().iter();
    sums.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// The largest cache as Linux and Android tell it; 0 where the system does not say.
fn largest_cache_bytes() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let kib: usize = text.trim().strip_suffix('K')?.parse().ok()?;
        kib.checked_mul(1024)
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (1..=1000).collect();
        assert_eq!(sum(&words), 500_500);
        assert_eq!(sum(&words[..7]), 28);
        assert_eq!(sum(&[]), 0);
    }
}

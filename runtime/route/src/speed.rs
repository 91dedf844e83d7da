//! How fast the device reads prompts.

use std::time::Duration;

/// What an older prompt still counts when a new one was measured.
const DECAY: f64 = 0.7;

/// Prompt tokens per second, as measured. Long prompts count more, recent ones too: phones slow down when they
/// get warm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PrefillSpeed {
    tokens: f64,
    seconds: f64,
}

impl PrefillSpeed {
    pub(super) fn observe(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 {
            return;
        }
        self.tokens = self.tokens * DECAY + tokens as f64;
        self.seconds = self.seconds * DECAY + took.as_secs_f64();
    }

    /// Time until so many tokens are read; `None` before anything was measured.
    pub(super) fn predict_ms(&self, tokens: usize) -> Option<u64> {
        (self.tokens > 0.0).then(|| (self.seconds / self.tokens * tokens as f64 * 1000.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_predicted_before_it_was_measured() {
        let mut speed = PrefillSpeed::default();
        speed.observe(0, Duration::from_secs(1));
        assert_eq!(speed.predict_ms(100), None);
    }

    #[test]
    fn predictions_follow_what_was_measured() {
        let mut speed = PrefillSpeed::default();
        speed.observe(100, Duration::from_secs(1));
        assert_eq!(speed.predict_ms(50), Some(500));
        for _ in 0..30 {
            speed.observe(100, Duration::from_secs(2));
        }
        let slower = speed.predict_ms(50).unwrap();
        assert!((990..=1000).contains(&slower), "{slower}");
    }
}

//! Probabilities of one position, from a row of logits.
//!
//! `p = e^(logit - highest) / sum`, all in f64. Sums run in lanes, so that compilers compute several terms at once: a
//! vocabulary has a hundred thousand, and a position should cost little beside the model that computed it.

use super::evaluation::ScoredPosition;

/// Partial sums that are kept side by side.
const LANES: usize = 8;

/// One row of logits, all of them numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogitsRow<'a> {
    logits: &'a [f32],
    highest: f32,
}

/// What two rows say of the same position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowComparison {
    /// Of each row.
    pub(super) log_sums: [f64; 2],
    /// `sum over tokens of p ln(p / q)`: p of the first row, q of the second.
    pub(super) kl_nats: f64,
}

impl<'a> LogitsRow<'a> {
    /// `None` unless every logit is a finite number.
    pub(super) fn new(logits: &'a [f32]) -> Option<LogitsRow<'a>> {
        let mut highest = [f32::NEG_INFINITY; LANES];
        // 0 times a finite number is 0, and times anything else it is no number.
        let mut zeros = [0.0; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                highest[lane] = larger(chunk[lane], highest[lane]);
                zeros[lane] += chunk[lane] * 0.0;
            }
        }
        let highest = rest.iter().chain(&highest).copied();
        let highest = highest.fold(f32::NEG_INFINITY, larger);
        let finite =
            zeros.iter().all(|zero| *zero == 0.0) && rest.iter().all(|logit| logit.is_finite());
        (finite && highest.is_finite()).then_some(LogitsRow { logits, highest })
    }

    /// The most likely token, the first of equals.
    fn choice(&self) -> u32 {
        let is_highest = |logit: &f32| *logit == self.highest;
        let choice = self.logits.iter().position(is_highest);
        choice
            .and_then(|choice| u32::try_from(choice).ok())
            .unwrap_or(0)
    }

    /// `ln(sum of e^(logit - highest))`.
    pub(super) fn log_sum(&self) -> f64 {
        let mut sums = [0.0; LANES];
        let highest = f64::from(self.highest);
        let (chunks, rest) = self.logits.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += exp(f64::from(chunk[lane]) - highest);
            }
        }
        let rest = rest.iter().map(|logit| exp(f64::from(*logit) - highest));
        (sums.iter().sum::<f64>() + rest.sum::<f64>()).ln()
    }

    /// How well the row predicts a token, given its [`log_sum`](Self::log_sum); infinitely badly one outside of the
    /// vocabulary.
    pub(super) fn score(&self, log_sum: f64, token: u32) -> ScoredPosition {
        let token = usize::try_from(token).ok();
        let logit = token.and_then(|token| self.logits.get(token));
        let nats = logit.map(|logit| log_sum + f64::from(self.highest) - f64::from(*logit));
        ScoredPosition {
            nats: nats.unwrap_or(f64::INFINITY),
            choice: self.choice(),
        }
    }

    /// How far the probabilities `q` of another row are from this one's.
    pub(super) fn compare(&self, other: &LogitsRow<'_>) -> RowComparison {
        // Of p, of q, and of p times the difference of logits that are taken relative to the highest.
        let mut sums = [[0.0; LANES]; 3];
        let (mine, others) = (f64::from(self.highest), f64::from(other.highest));
        let terms = |p: f32, q: f32| {
            let (p_logit, q_logit) = (f64::from(p) - mine, f64::from(q) - others);
            let (p, q) = (exp(p_logit), exp(q_logit));
            [p, q, p * (p_logit - q_logit)]
        };
        let (p_chunks, p_rest) = self.logits.as_chunks::<LANES>();
        let (q_chunks, q_rest) = other.logits.as_chunks::<LANES>();
        for (p, q) in p_chunks.iter().zip(q_chunks) {
            for lane in 0..LANES {
                let terms = terms(p[lane], q[lane]);
                for (sums, term) in sums.iter_mut().zip(terms) {
                    sums[lane] += term;
                }
            }
        }
        let [mut p_sum, mut q_sum, mut difference] = sums.map(|lanes| lanes.iter().sum::<f64>());
        for (p, q) in p_rest.iter().zip(q_rest) {
            let terms = terms(*p, *q);
            p_sum += terms[0];
            q_sum += terms[1];
            difference += terms[2];
        }
        let log_sums = [p_sum.ln(), q_sum.ln()];
        RowComparison {
            log_sums,
            // Never negative, but for rounding.
            kl_nats: (difference / p_sum - log_sums[0] + log_sums[1]).max(0.0),
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `1 / k!`
const TERMS: [f64; 14] = {
    let mut terms = [1.0; 14];
    let (mut k, mut factorial) = (1, 1u64);
    while k < terms.len() {
        factorial *= k as u64;
        terms[k] = 1.0 / factorial as f64;
        k += 1;
    }
    terms
};

/// `e^x` for `x <= 0`, within 4 units in the last place; what is below `e^-708` becomes that.
///
/// `x = n ln 2 + r`, Taylor's series for `e^r` by Estrin's scheme: no branch, no call and short chains, so that several
/// are computed at once, in half the time of the platform's.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// ln 2 in two parts, the first with so few digits that `n` times it is exact.
    const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    /// Adding it rounds to a whole number, which the low bits of the sum then hold.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    let x = if x < -708.0 { -708.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    let r2 = r * r;
    let r4 = r2 * r2;
    let pair = |k: usize| TERMS[k] + TERMS[k + 1] * r;
    let four = |k: usize| pair(k) + pair(k + 2) * r2;
    let series = (four(0) + four(4) * r4) + (four(8) + pair(12) * r4) * (r4 * r4);
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::{LogitsRow, exp};
    use proptest::prelude::*;

    fn row(logits: &[f32]) -> LogitsRow<'_> {
        LogitsRow::new(logits).unwrap()
    }

    #[test]
    fn the_exponential_is_that_of_the_platform() {
        for i in 0..80_000 {
            let x = f64::from(-i) / 113.0;
            assert!(
                (exp(x) - x.exp()).abs() <= 4.0 * f64::EPSILON * x.exp(),
                "{x}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f64::NEG_INFINITY) < 1e-300);
    }

    #[test]
    fn equal_logits_share_the_probability() {
        let row = row(&[1.5; 11]);
        assert!((row.score(row.log_sum(), 3).nats - 11_f64.ln()).abs() < 1e-12);
        assert_eq!(row.score(row.log_sum(), 11).nats, f64::INFINITY);
    }

    #[test]
    fn the_first_of_equal_logits_is_chosen() {
        assert_eq!(row(&[0.0, 2.0, 2.0, -1.0]).choice(), 1);
    }

    #[test]
    fn rows_that_are_not_all_numbers_are_refused_wherever_the_fault_is() {
        for length in [1, 7, 8, 9, 30] {
            for at in 0..length {
                for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut logits = vec![-3.0; length];
                    assert!(LogitsRow::new(&logits).is_some());
                    logits[at] = fault;
                    assert!(LogitsRow::new(&logits).is_none(), "{fault} at {at}");
                }
            }
        }
        assert!(LogitsRow::new(&[]).is_none());
    }

    #[test]
    fn a_coin_that_is_thought_fair_is_as_far_off_as_paper_says() {
        // 0.75 ln(0.75 / 0.5) + 0.25 ln(0.25 / 0.5)
        let (sure, fair) = ([3_f32.ln(), 0.0], [7.0, 7.0]);
        let found = row(&sure).compare(&row(&fair)).kl_nats;
        assert!((found - 0.130_812_035_941).abs() < 1e-7, "{found}");
    }

    proptest! {
        #[test]
        fn divergence_is_what_the_definition_gives(
            logits in proptest::collection::vec((-30.0..30.0f32, -30.0..30.0f32), 1..40)
        ) {
            let (p, q): (Vec<f32>, Vec<f32>) = logits.into_iter().unzip();
            let probabilities = |logits: &[f32]| {
                let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                logits.iter().map(|logit| f64::from(*logit).exp() / sum).collect::<Vec<_>>()
            };
            let pairs = probabilities(&p).into_iter().zip(probabilities(&q));
            let expected: f64 = pairs.map(|(p, q)| p * (p / q).ln()).sum();
            let found = row(&p).compare(&row(&q));
            prop_assert!((found.kl_nats - expected).abs() < 1e-12 * expected.max(1.0));
            prop_assert!((found.log_sums[0] - row(&p).log_sum()).abs() < 1e-12);
            prop_assert!((found.log_sums[1] - row(&q).log_sum()).abs() < 1e-12);
            prop_assert_eq!(row(&p).compare(&row(&p)).kl_nats, 0.0);
        }
    }
}

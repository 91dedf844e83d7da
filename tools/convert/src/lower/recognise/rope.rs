//! Recovers a rotary embedding's frequencies from the angles an export turns by.

use super::super::interpret::Precision;
use std::f64::consts::TAU;
use std::rc::Rc;

/// Angles observed at consecutive positions.
pub(super) struct Observed<'a> {
    pub(super) first_position: usize,
    /// `[tokens][pair]`, radians, each known up to full turns.
    pub(super) angles: &'a [Vec<f64>],
}

/// The angle moved by full turns to where `expected` is.
fn unwrapped(angle: f64, expected: f64) -> f64 {
    angle + ((expected - angle) / TAU).round() * TAU
}

/// Radians per position for each pair.
///
/// Neighbouring tokens give a first estimate, later positions sharpen it. When the export holds a constant that
/// explains the angles equally well, that constant is the answer, to the bit. `Err` when the angles are not
/// proportional to the position.
pub(super) fn frequencies(
    observed: &[Observed<'_>],
    constants: &[Rc<[f64]>],
    precision: Precision,
) -> Result<Vec<f32>, String> {
    // An angle is as exact as the type it was computed in; f16 keeps 11 bits of it. In bfloat16 exports cosines and
    // sines are computed in f32 and keep 8 bits.
    let (slack, rounding) = match precision {
        Precision::Single => (3e-3, 1e-6),
        Precision::Half => (3e-3, 1e-3),
        Precision::Bfloat16 => (1e-2, 1e-6),
    };
    let Some(first) = observed.first() else {
        return Err("no angle was observed".into());
    };
    let pairs = first.angles.first().map_or(0, Vec::len);
    let mut estimates = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        let steps: Vec<f64> = first
            .angles
            .windows(2)
            .map(|two| unwrapped(two[1][pair] - two[0][pair], 0.0))
            .collect();
        let Some(&step) = steps.first() else {
            return Err("too few positions were observed".into());
        };
        let mut frequency = step;
        let mut at = 1.0;
        for run in observed {
            for (token, angles) in run.angles.iter().enumerate() {
                let position = (run.first_position + token) as f64;
                if position <= at {
                    continue;
                }
                let angle = unwrapped(angles[pair], frequency * position);
                frequency = angle / position;
                at = position;
            }
        }
        estimates.push(frequency);
    }
    let close = |candidate: &Rc<[f64]>| {
        let last = observed
            .iter()
            .map(|run| run.first_position + run.angles.len())
            .max()
            .unwrap_or(0) as f64;
        let worst = candidate
            .iter()
            .zip(&estimates)
            .map(|(a, b)| {
                let apart = (a - b).abs();
                if precision == Precision::Bfloat16 && apart * last < slack {
                    0.0
                } else {
                    apart / b.abs().max(1e-12)
                }
            })
            .fold(0.0, f64::max);
        (candidate.len() == pairs && worst < 2e-3).then_some(worst)
    };
    let chosen = constants
        .iter()
        .filter_map(|candidate| close(candidate).map(|worst| (worst, candidate)))
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(|| estimates.clone(), |(_, candidate)| candidate.to_vec());
    for run in observed {
        for (token, angles) in run.angles.iter().enumerate() {
            let position = (run.first_position + token) as f64;
            for (pair, &angle) in angles.iter().enumerate() {
                let expected = chosen[pair] * position;
                let apart = (unwrapped(angle, expected) - expected).abs();
                if apart > slack + expected.abs() * rounding {
                    return Err(format!(
                        "at position {position} pair {pair} turns by {angle:.5}, not by {expected:.5}: \
                         its angles are not proportional to the position"
                    ));
                }
            }
        }
    }
    Ok(chosen.iter().map(|value| *value as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn angles(frequencies: &[f64], first: usize, tokens: usize) -> Vec<Vec<f64>> {
        (first..first + tokens)
            .map(|position| {
                frequencies
                    .iter()
                    .map(|f| {
                        (f * position as f64)
                            .sin()
                            .atan2((f * position as f64).cos())
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn frequencies_are_recovered_through_full_turns() {
        let real = [1.0, 0.3, 0.001, 2.5e-5];
        let (near, far) = (angles(&real, 7, 5), angles(&real, 900, 5));
        let observed = [
            Observed {
                first_position: 7,
                angles: &near,
            },
            Observed {
                first_position: 900,
                angles: &far,
            },
        ];
        let found = frequencies(&observed, &[], Precision::Single).unwrap();
        for (found, real) in found.iter().zip(real) {
            assert!((f64::from(*found) / real - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn a_constant_of_the_export_is_taken_to_the_bit() {
        let real: Rc<[f64]> = Rc::from([1.0, f64::from(0.1f32)]);
        let near = angles(&[1.0, 0.100_000_1], 3, 5);
        let observed = [Observed {
            first_position: 3,
            angles: &near,
        }];
        assert_eq!(
            frequencies(&observed, std::slice::from_ref(&real), Precision::Single).unwrap(),
            [1.0, 0.1]
        );
    }

    #[test]
    fn angles_that_change_their_pace_are_refused() {
        let (near, far) = (angles(&[0.5], 7, 5), angles(&[0.4], 900, 5));
        let observed = [
            Observed {
                first_position: 7,
                angles: &near,
            },
            Observed {
                first_position: 900,
                angles: &far,
            },
        ];
        assert!(frequencies(&observed, &[], Precision::Single).is_err());
    }
}

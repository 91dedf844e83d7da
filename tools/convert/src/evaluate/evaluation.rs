//! What was found, position by position, and the figures that sum it up.

use super::statistics::{Estimate, quantile};

/// One prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredPosition {
    /// `-ln` of the probability of the token that came, in nats.
    pub nats: f64,
    /// The most likely token.
    pub choice: u32,
}

/// What one model predicts of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub(super) positions: Vec<ScoredPosition>,
    /// Positions of each window.
    pub(super) windows: Vec<usize>,
}

impl Evaluation {
    /// Every prediction, in the order of the text.
    pub fn positions(&self) -> &[ScoredPosition] {
        &self.positions
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Mean of [`ScoredPosition::nats`].
    pub fn nats(&self) -> Estimate {
        mean(&self.positions, &self.windows, |position| position.nats)
    }

    /// `exp` of the mean: as if the model chose among this many equally likely tokens.
    pub fn perplexity(&self) -> Estimate {
        self.nats().exp()
    }
}

/// One prediction of a model beside its reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComparedPosition {
    /// What the model predicts.
    pub model: ScoredPosition,
    /// What the reference predicts.
    pub reference: ScoredPosition,
    /// Kullback-Leibler divergence of the model's probabilities `q` from the reference's `p`: `sum p ln(p / q)` over the
    /// vocabulary, in nats; 0 where they are equal.
    pub kl_nats: f64,
}

/// What a model predicts of a text beside what its reference does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    pub(super) positions: Vec<ComparedPosition>,
    /// Positions of each window.
    pub(super) windows: Vec<usize>,
}

impl Comparison {
    /// Every prediction, in the order of the text.
    pub fn positions(&self) -> &[ComparedPosition] {
        &self.positions
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// What the model predicts.
    pub fn model(&self) -> Evaluation {
        self.side(|position| position.model)
    }

    /// What the reference predicts.
    pub fn reference(&self) -> Evaluation {
        self.side(|position| position.reference)
    }

    fn side(&self, of: impl Fn(&ComparedPosition) -> ScoredPosition) -> Evaluation {
        Evaluation {
            positions: self.positions.iter().map(of).collect(),
            windows: self.windows.clone(),
        }
    }

    /// Mean of [`ComparedPosition::kl_nats`].
    pub fn kl_nats(&self) -> Estimate {
        mean(&self.positions, &self.windows, |position| position.kl_nats)
    }

    /// The divergence in nats that this share of the positions, 0 to 1, does not exceed: 0.5 is the median, 1 the maximum.
    pub fn kl_nats_quantile(&self, share: f64) -> f64 {
        let values: Vec<f64> = self.positions.iter().map(|found| found.kl_nats).collect();
        quantile(&values, share)
    }

    /// Share of positions, 0 to 1, where both find the same token most likely.
    pub fn top1_agreement(&self) -> Estimate {
        mean(&self.positions, &self.windows, |position| {
            f64::from(u8::from(position.model.choice == position.reference.choice))
        })
    }

    /// The model's perplexity over the reference's. Its error is far smaller than theirs: where a text is hard to predict
    /// it is so for both.
    pub fn perplexity_ratio(&self) -> Estimate {
        let difference =
            |position: &ComparedPosition| position.model.nats - position.reference.nats;
        mean(&self.positions, &self.windows, difference).exp()
    }
}

fn mean<T>(positions: &[T], windows: &[usize], value: impl Fn(&T) -> f64) -> Estimate {
    let values: Vec<f64> = positions.iter().map(value).collect();
    Estimate::mean(&values, windows)
}

#[cfg(test)]
mod tests {
    use super::{ComparedPosition, Comparison, ScoredPosition};

    #[test]
    fn figures_are_those_of_their_positions() {
        let position = |nats: [f64; 2], choices: [u32; 2], kl_nats| ComparedPosition {
            model: ScoredPosition {
                nats: nats[0],
                choice: choices[0],
            },
            reference: ScoredPosition {
                nats: nats[1],
                choice: choices[1],
            },
            kl_nats,
        };
        let found = Comparison {
            positions: vec![
                position([1.0, 0.5], [7, 7], 0.1),
                position([2.0, 1.5], [8, 8], 0.2),
                position([3.0, 2.5], [9, 7], 0.3),
                position([2.0, 1.5], [9, 9], 0.0),
            ],
            windows: vec![2, 2],
        };
        assert_eq!(found.top1_agreement().value, 0.75);
        assert_eq!(found.model().perplexity().value, 2.0_f64.exp());
        assert_eq!(found.reference().nats().value, 1.5);
        let ratio = found.perplexity_ratio();
        assert_eq!(
            (ratio.value, ratio.standard_error),
            (0.5_f64.exp(), Some(0.0))
        );
        assert!(found.model().perplexity().standard_error > Some(1.0));
        assert!((found.kl_nats().value - 0.15).abs() < 1e-12);
        assert!((found.kl_nats_quantile(0.5) - 0.15).abs() < 1e-12);
        assert_eq!(found.kl_nats_quantile(1.0), 0.3);
    }
}

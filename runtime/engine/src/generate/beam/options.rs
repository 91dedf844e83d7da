//! What a caller asks of a beam search.

use crate::generate::options::{ContextEnd, GenerateOptions};

/// When a group of beams is done, once it has as many hypotheses as beams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EarlyStopping {
    /// When the best candidate, ended where it is, would not be better than the worst hypothesis: transformers' `False`.
    #[default]
    Unlikely,
    /// At once: transformers' `True`.
    WhenFull,
    /// When no candidate can become better than the worst hypothesis, however long it grows: transformers' `"never"`.
    Never,
}

/// How many beams, and which of them are the best.
///
/// ```
/// use niwaki::{BeamOptions, EarlyStopping};
///
/// let beams = BeamOptions::new(6)
///     .with_groups(3)
///     .with_diversity_penalty(0.5)
///     .with_length_penalty(0.8)
///     .with_early_stopping(EarlyStopping::Never)
///     .with_n_best(2);
/// assert_eq!(beams.width, 6);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BeamOptions {
    /// Beams in all, 1 to [`MAX_WIDTH`](Self::MAX_WIDTH).
    pub width: usize,
    /// So many groups of equally many beams each (diverse beam search, Vijayakumar et al., 2016). 1 for plain beam search.
    pub groups: usize,
    /// Taken from a token's log-probability for each beam of an earlier group that chose it at this place.
    pub diversity_penalty: f32,
    /// A hypothesis' score is the sum of its log-probabilities divided by its length to this power, the token that ended
    /// it included: above 0 longer texts are preferred, below 0 shorter ones; 0 leaves the sum.
    pub length_penalty: f32,
    /// When it ends.
    pub early_stopping: EarlyStopping,
    /// So many of the best hypotheses are given out, 1 to `width`.
    pub n_best: usize,
}

/// Beams that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBeams {
    /// None, or more than are allowed.
    #[error("{width} beams were asked for; ask for 1 to {most}", most = BeamOptions::MAX_WIDTH)]
    Width {
        /// Beams that were asked for.
        width: usize,
    },
    /// The groups would not have equally many beams.
    #[error("{width} beams cannot be parted into {groups} groups; choose a divisor of the beams")]
    Groups {
        /// Beams that were asked for.
        width: usize,
        /// Groups that were asked for.
        groups: usize,
    },
    /// A diversity penalty that is no finite number of 0 or more.
    #[error("a diversity penalty of {0} makes no sense; give a finite number, 0 or more")]
    DiversityPenalty(f32),
    /// A length penalty that no power of a length can be.
    #[error("a length penalty of {0} makes no sense; give a number from -16 to 16")]
    LengthPenalty(f32),
    /// No hypotheses, or more than there are beams.
    #[error("{n_best} hypotheses of {width} beams were asked for; ask for 1 to {width}")]
    NBest {
        /// Hypotheses that were asked for.
        n_best: usize,
        /// Beams that were asked for.
        width: usize,
    },
    /// An option that follows a single text.
    #[error("{0} has no meaning for beams; leave it out, or generate without beams")]
    SingleText(&'static str),
}

impl BeamOptions {
    /// Most beams: each needs logits and pages of its own.
    pub const MAX_WIDTH: usize = 64;

    /// Plain beam search with so many beams, which gives out the best hypothesis. The length penalty is 1.
    pub fn new(width: usize) -> BeamOptions {
        BeamOptions {
            width,
            groups: 1,
            diversity_penalty: 0.0,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            n_best: 1,
        }
    }

    /// With this for [`groups`](Self::groups).
    #[must_use]
    pub fn with_groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// With this for [`diversity_penalty`](Self::diversity_penalty).
    #[must_use]
    pub fn with_diversity_penalty(mut self, penalty: f32) -> Self {
        self.diversity_penalty = penalty;
        self
    }

    /// With this for [`length_penalty`](Self::length_penalty).
    #[must_use]
    pub fn with_length_penalty(mut self, penalty: f32) -> Self {
        self.length_penalty = penalty;
        self
    }

    /// With this for [`early_stopping`](Self::early_stopping).
    #[must_use]
    pub fn with_early_stopping(mut self, early_stopping: EarlyStopping) -> Self {
        self.early_stopping = early_stopping;
        self
    }

    /// With this for [`n_best`](Self::n_best).
    #[must_use]
    pub fn with_n_best(mut self, n_best: usize) -> Self {
        self.n_best = n_best;
        self
    }

    /// Whether a search can be made of these, together with what else is asked for.
    pub(super) fn check(&self, options: &GenerateOptions) -> Result<(), InvalidBeams> {
        let (width, groups, n_best) = (self.width, self.groups, self.n_best);
        if !(1..=Self::MAX_WIDTH).contains(&width) {
            return Err(InvalidBeams::Width { width });
        }
        if groups == 0 || !width.is_multiple_of(groups) {
            return Err(InvalidBeams::Groups { width, groups });
        }
        if !(self.diversity_penalty.is_finite() && self.diversity_penalty >= 0.0) {
            return Err(InvalidBeams::DiversityPenalty(self.diversity_penalty));
        }
        if !(-16.0..=16.0).contains(&self.length_penalty) {
            return Err(InvalidBeams::LengthPenalty(self.length_penalty));
        }
        if !(1..=width).contains(&n_best) {
            return Err(InvalidBeams::NBest { n_best, width });
        }
        let single_text = [
            ("a stop string", !options.stop_strings.is_empty()),
            ("a text filter", !options.filters.is_empty()),
            ("log_probs", options.log_probs.is_some()),
            (
                "forgetting the oldest",
                options.context_end == ContextEnd::ForgetOldest,
            ),
        ];
        match single_text.iter().find(|(_, given)| *given) {
            Some((what, _)) => Err(InvalidBeams::SingleText(what)),
            None => Ok(()),
        }
    }
}

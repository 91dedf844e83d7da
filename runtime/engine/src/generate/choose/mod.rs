//! From logits to a token: a chain of steps, then a draw.
//!
//! Every step says at which [`Stage`] it works. The chain has them in this order, and those of one stage in the order they
//! were added, the ones that [`Sampling`]'s settings ask for first:
//!
//! 1. **Constraints** say what may come at all. They are first because what cannot come must not count: it takes no place
//!    of the top-k, no share of the top-p, and min-p does not measure by it. Were they last, a cut before them could leave
//!    nothing but what they forbid.
//! 2. **Penalties and biases** change how likely tokens are. They work on the logits as the model gives them, so that
//!    their strength means the same at every temperature.
//! 3. **Temperature** sharpens or flattens all of them.
//! 4. **Truncation** leaves out the unlikely, of the distribution that is drawn from. It always keeps at least one of
//!    what it is given.
//! 5. The **draw**; temperature 0 takes the best instead. Mirostat's moving cut belongs to it.
//!
//! 2 to 4 are in the order of transformers. A candidate that any step forbids is gone for good: no setting and no later
//! step brings it back. Where none is left, that is an answer of its own ([`SampleError::NothingAllowed`]), never a token.

mod candidates;
mod exp;
mod ln;
mod log_probs;
mod logits;
mod mirostat;
mod random;
mod sampler;
mod settings;
mod step;
mod steps;

pub use candidates::{Candidate, Candidates};
pub(super) use exp::power;
pub use log_probs::LogProbs;
pub(super) use log_probs::log_softmax;
pub(super) use logits::first_not_finite;
pub use random::Random;
pub use sampler::{CheckpointAhead, SampleError, Sampler, SamplerCheckpoint};
pub use settings::{Dry, InvalidSampling, Mirostat, RepetitionPenalty, Sampling, Xtc};
pub use step::{SamplingStep, SamplingSteps, Stage};

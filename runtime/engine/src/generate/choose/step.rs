//! What a step of the chain is.

use super::candidates::Candidates;
use std::fmt;
use std::sync::Arc;

/// Where in the chain a step works, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Forbids what may not come: grammars, banned tokens, n-grams that must not repeat. Before everything else, so that
    /// what is forbidden counts nowhere.
    Constraint,
    /// Makes tokens more or less likely: penalties and biases. The built-in repetition penalty is here.
    Penalty,
    /// Sharpens or flattens the distribution.
    Temperature,
    /// Leaves out the unlikely: top-k, top-p and min-p, in this order, then an app's steps.
    Truncation,
}

/// One step of the chain between logits and choice: removes candidates or changes their logits.
///
/// A step may remember what was chosen. [`rollback`](Self::rollback) takes tokens back, as speculation needs it, and
/// [`fork`](Self::fork) makes a second step of the same memory, as beams need it.
///
/// ```
/// use niwaki::{Candidates, GenerateOptions, Sampler, Sampling, SamplingStep, Stage};
///
/// /// The same token never comes twice in a row.
/// #[derive(Clone, Default)]
/// struct NoStutter {
///     chosen: Vec<u32>,
/// }
///
/// impl SamplingStep for NoStutter {
///     fn stage(&self) -> Stage {
///         Stage::Constraint
///     }
///
///     fn apply(&mut self, candidates: &mut Candidates) {
///         if let Some(last) = self.chosen.last() {
///             candidates.forbid(&[*last]);
///         }
///     }
///
///     fn accept(&mut self, token: u32) {
///         self.chosen.push(token);
///     }
///
///     fn rollback(&mut self, count: usize) {
///         self.chosen.truncate(self.chosen.len().saturating_sub(count));
///     }
///
///     fn fork(&self) -> Box<dyn SamplingStep> {
///         Box::new(self.clone())
///     }
/// }
///
/// // In a generation, a reply or a request:
/// let options = GenerateOptions::default().with_step(NoStutter::default());
///
/// // On its own: token 1 has the best logit, and comes every other time.
/// let mut sampler = Sampler::new(&Sampling::GREEDY)?;
/// sampler.push(Box::new(NoStutter::default()));
/// let mut chosen = Vec::new();
/// for _ in 0..4 {
///     let token = sampler.sample(&[0.5, 2.0, 1.0])?;
///     sampler.accept(token);
///     chosen.push(token);
/// }
/// assert_eq!(chosen, [1, 2, 1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait SamplingStep: Send + Sync {
    /// Where it works; always the same.
    fn stage(&self) -> Stage;

    /// Applies the step; there is at least one candidate. What it does must follow from the candidates and from the tokens
    /// it knows, so that a step which was rolled back does it again: one that draws takes its numbers from a seed and
    /// how many tokens it knows.
    fn apply(&mut self, candidates: &mut Candidates);

    /// Learns tokens of the prompt, before any that was chosen. They may come in parts, and are never taken back.
    fn read_prompt(&mut self, tokens: &[u32]) {
        let _ = tokens;
    }

    /// Learns a token that was chosen. One that remembers it has to take it back in [`rollback`](Self::rollback).
    fn accept(&mut self, token: u32) {
        let _ = token;
    }

    /// Takes back the last `count` tokens it accepted, never more than those: it is then as if they had not come.
    fn rollback(&mut self, count: usize) {
        let _ = count;
    }

    /// A step of its own that knows the same.
    fn fork(&self) -> Box<dyn SamplingStep>;
}

/// An app's steps for [`GenerateOptions`](crate::GenerateOptions), in the order they were added.
///
/// They are patterns: every generation runs forks of them, so that the same options give the same text again, and copies
/// of them share nothing that changes. Equal are those that hold the same steps, as copies of options do; two
/// steps that do the same are two.
#[derive(Clone, Default)]
pub struct SamplingSteps(Vec<Arc<dyn SamplingStep>>);

impl SamplingSteps {
    /// Adds a step.
    pub fn push(&mut self, step: impl SamplingStep + 'static) {
        self.0.push(Arc::new(step));
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A fork of each.
    pub(in crate::generate) fn forks(&self) -> impl Iterator<Item = Box<dyn SamplingStep>> {
        self.0.iter().map(|step| step.fork())
    }
}

impl PartialEq for SamplingSteps {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.len() == other.len() && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

/// The stages alone: what steps hold may be text of a user.
impl fmt::Debug for SamplingSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = self.0.iter().map(|step| step.stage());
        f.debug_list().entries(stages).finish()
    }
}

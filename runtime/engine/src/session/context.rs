//! A context: tokens go in, logits come out.

use super::batch::{BatchStep, LogitsFor, Outputs};
use super::engine::Engine;
use super::error::SessionError;
use super::rows::Logits;
use crate::cancellation::Cancellation;
use crate::kv::KvCache;
use crate::model::{Entries, Profile};
use niwaki_bundle::graph::Output;

/// One context of a model: its tokens, and their keys and values.
pub struct Session {
    engine: Engine,
    pub(super) cache: KvCache,
    /// The tokens in the context; none where the model takes rows instead.
    pub(super) tokens: Vec<u32>,
    pub(super) profile: Option<Profile>,
}

/// What a session held at one moment, to [go back](Session::rewind) to. It shares keys and values with the session: it
/// costs the pages that the session writes to afterwards.
#[derive(Clone)]
pub struct SessionCheckpoint {
    engine: Engine,
    cache: KvCache,
    tokens: Vec<u32>,
}

impl Session {
    pub(super) fn new(engine: Engine, cache: KvCache) -> Session {
        engine.workspaces().enter();
        Session {
            engine,
            cache,
            tokens: Vec::new(),
            profile: None,
        }
    }

    /// The engine this session belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn belongs_to(&self, engine: &Engine) -> bool {
        self.engine.is(engine)
    }

    /// Tokens in the context.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether the context is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens in the context, oldest first; none where the model takes rows instead.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Adds tokens to the context. Long prompts are computed in runs of bounded size; how tokens are split
    /// over runs or calls never changes a bit of the logits.
    ///
    /// # Errors
    /// [`SessionError`]; the context is then as it was before.
    pub fn append(
        &mut self,
        tokens: &[u32],
        logits_for: LogitsFor,
    ) -> Result<Logits, SessionError> {
        self.append_under(tokens, logits_for, None)
    }

    /// As [`append`](Self::append), ending early when `cancellation` is cancelled.
    ///
    /// # Errors
    /// [`SessionError::Cancelled`] and all that `append` gives; the context is then as it was before.
    pub fn append_cancellable(
        &mut self,
        tokens: &[u32],
        logits_for: LogitsFor,
        cancellation: &Cancellation,
    ) -> Result<Logits, SessionError> {
        self.append_under(tokens, logits_for, Some(cancellation))
    }

    fn append_under(
        &mut self,
        tokens: &[u32],
        logits_for: LogitsFor,
        cancellation: Option<&Cancellation>,
    ) -> Result<Logits, SessionError> {
        if self.engine.graph().output(Output::LOGITS).is_none() {
            return Err(SessionError::NoLogits);
        }
        let outputs = self.run(&[Entries::Ids(tokens)], logits_for, cancellation)?;
        outputs.take(Output::LOGITS).ok_or(SessionError::NoLogits)
    }

    /// Adds tokens to the context by all that the model takes for them, and answers all of its outputs.
    ///
    /// # Errors
    /// [`SessionError`]; the context is then as it was before.
    pub fn run(
        &mut self,
        inputs: &[Entries<'_>],
        logits_for: LogitsFor,
        cancellation: Option<&Cancellation>,
    ) -> Result<Outputs, SessionError> {
        let engine = self.engine.clone();
        let step = BatchStep {
            session: self,
            inputs,
            logits_for,
        };
        let mut outputs = engine
            .run(&mut [step], cancellation)
            .map_err(|error| error.source)?;
        outputs.pop().ok_or(SessionError::NoTokens)
    }

    /// A session with the same context. The two share keys and values until one of them writes to a page.
    pub fn fork(&self) -> Session {
        let mut fork = Session::new(self.engine.clone(), self.cache.clone());
        fork.tokens.clone_from(&self.tokens);
        fork
    }

    /// What the session holds now. Unlike [`truncate`](Self::truncate), going back to it always succeeds: it keeps what
    /// sliding windows drop later.
    pub fn checkpoint(&self) -> SessionCheckpoint {
        SessionCheckpoint {
            engine: self.engine.clone(),
            cache: self.cache.clone(),
            tokens: self.tokens.clone(),
        }
    }

    /// Goes back, or forward again, to what a session of the same engine held.
    ///
    /// # Errors
    /// [`SessionError::OtherEngine`].
    pub fn rewind(&mut self, checkpoint: &SessionCheckpoint) -> Result<(), SessionError> {
        if !self.belongs_to(&checkpoint.engine) {
            return Err(SessionError::OtherEngine);
        }
        self.cache.clone_from(&checkpoint.cache);
        self.tokens.clone_from(&checkpoint.tokens);
        Ok(())
    }

    /// Takes the time of every operator from now on; what was measured before is forgotten.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::new(self.engine.graph().nodes.len()));
    }

    /// Stops measuring and returns what was measured; `None` when nothing was asked for.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.profile.take()
    }

    /// Forgets every token from index `len` on; a longer `len` changes nothing.
    ///
    /// # Errors
    /// [`SessionError::Forgotten`] when sliding windows have dropped keys and values that the tokens before
    /// `len` need; the context is then as it was.
    pub fn truncate(&mut self, len: usize) -> Result<(), SessionError> {
        if len == 0 {
            return self.reset();
        }
        if !self.cache.truncate(len) {
            return Err(SessionError::Forgotten {
                len: self.len(),
                target: len,
            });
        }
        self.tokens.truncate(len);
        Ok(())
    }

    /// Goes back to the longest beginning that the context has in common with `tokens`, and answers its length:
    /// what is left of `tokens` is all that has to be appended. Starts over where sliding windows forgot what
    /// going back needs.
    ///
    /// # Errors
    /// As [`reset`](Self::reset).
    pub fn keep_common_prefix(&mut self, tokens: &[u32]) -> Result<usize, SessionError> {
        let pairs = self.tokens.iter().zip(tokens);
        let common = pairs.take_while(|(here, there)| here == there).count();
        match self.truncate(common) {
            Err(SessionError::Forgotten { .. }) => self.reset().map(|()| 0),
            done => done.map(|()| common),
        }
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// [`SessionError::Cache`] when the model's pages do not fit into the address space.
    pub fn reset(&mut self) -> Result<(), SessionError> {
        self.cache = self.engine.empty_cache()?;
        self.tokens.clear();
        Ok(())
    }

    /// Bytes of keys and values that are kept now.
    pub fn kv_bytes(&self) -> usize {
        self.cache.size_bytes()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.workspaces().leave();
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SessionCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionCheckpoint")
            .field("len", &self.cache.len())
            .finish_non_exhaustive()
    }
}

//! A context: tokens go in, logits come out.

use super::cancellation::Cancellation;
use super::logits::Logits;
use super::open::Engine;
use crate::kv::CacheError;
use crate::model::{Decoder, ModelError, Profile};
use std::time::Instant;
use tract_core::internal::IntoArcTensor;
use tract_core::model::TypedSimpleState;

/// Logits of one append are computed in runs that hold at most about this much of them.
const LOGITS_TARGET_BYTES: usize = 64 << 20;

/// Whose next-token logits an append returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsFor {
    /// One row, of the last token.
    LastToken,
    /// One row per token.
    EveryToken,
}

/// Why a session could not go on. Its context is then as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Nothing to compute.
    #[error("no tokens were given; give at least one")]
    NoTokens,
    /// A token id the model does not have.
    #[error(
        "token {token} at index {index} is not in the vocabulary of {vocabulary}; is this the model's own tokenizer?"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Where it is among the given ones.
        index: usize,
        /// Number of tokens the model has.
        vocabulary: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "the context is full: it holds {context_tokens} tokens, {len} are in it and {added} more were given; \
         start over with less text"
    )]
    ContextFull {
        /// Tokens the context holds.
        context_tokens: usize,
        /// Tokens in it.
        len: usize,
        /// Tokens that were given.
        added: usize,
    },
    /// Sliding windows dropped what going back would need.
    #[error(
        "the session cannot go back from {len} tokens to {target}: its sliding windows forgot what is needed; reset it"
    )]
    Forgotten {
        /// Tokens in the context.
        len: usize,
        /// Where it should have gone.
        target: usize,
    },
    /// The result does not fit into memory.
    #[error("no memory for logits of {rows} tokens; ask for fewer at once")]
    OutOfMemory {
        /// Rows of logits.
        rows: usize,
    },
    /// Keys and values could not be kept.
    #[error("keys and values cannot be kept: {0}")]
    Cache(String),
    /// The work was cancelled.
    #[error("the work was cancelled")]
    Cancelled,
    /// An operator failed.
    #[error("the model cannot be run")]
    Model(#[source] ModelError),
}

impl From<ModelError> for SessionError {
    fn from(error: ModelError) -> Self {
        if error.is_cancelled() {
            SessionError::Cancelled
        } else {
            SessionError::Model(error)
        }
    }
}

impl From<CacheError> for SessionError {
    fn from(error: CacheError) -> Self {
        SessionError::Cache(error.to_string())
    }
}

/// One context of a model: its tokens' keys and values, and a plan to add more.
pub struct Session {
    engine: Engine,
    state: TypedSimpleState,
    chunk_tokens: usize,
    /// The tokens in the context.
    tokens: Vec<u32>,
}

impl Session {
    pub(super) fn new(engine: Engine, state: TypedSimpleState, chunk_tokens: usize) -> Session {
        Session {
            engine,
            state,
            chunk_tokens,
            tokens: Vec::new(),
        }
    }

    /// The engine this session belongs to.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Tokens in the context.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the context is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens in the context, oldest first.
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
        self.append_under(tokens, logits_for, Some(cancellation.clone()))
    }

    fn append_under(
        &mut self,
        tokens: &[u32],
        logits_for: LogitsFor,
        cancellation: Option<Cancellation>,
    ) -> Result<Logits, SessionError> {
        let start = Instant::now();
        let vocabulary = self.engine.graph().vocabulary;
        self.check(tokens, self.engine.token_ids())?;
        let gathered = match logits_for {
            LogitsFor::LastToken => 0,
            LogitsFor::EveryToken => tokens.len(),
        };
        let chunk_tokens = match logits_for {
            LogitsFor::LastToken => self.chunk_tokens,
            LogitsFor::EveryToken => {
                (LOGITS_TARGET_BYTES / 4 / vocabulary).clamp(1, self.chunk_tokens)
            }
        };
        let mut values = Vec::new();
        gathered
            .checked_mul(vocabulary)
            .and_then(|count| values.try_reserve_exact(count).ok())
            .ok_or(SessionError::OutOfMemory { rows: gathered })?;
        let before = self.tokens.len();
        let turn = Decoder::turn(&mut self.state)?;
        turn.cancellation = cancellation;
        // Several runs may push keys and values out of a sliding window; going back needs them.
        let windows = self
            .engine
            .graph()
            .layers
            .iter()
            .any(|layer| layer.window.is_some());
        let cache =
            (windows && before > 0 && tokens.len() > chunk_tokens).then(|| turn.cache.clone());
        let result = self.run_chunks(tokens, chunk_tokens, logits_for, values);
        let turn = Decoder::turn(&mut self.state)?;
        turn.cancellation = None;
        let logits = match result {
            Ok(logits) => logits,
            Err(error) => {
                match cache {
                    Some(cache) => turn.cache = cache,
                    None => {
                        turn.cache.truncate(before);
                    }
                }
                self.tokens.truncate(before);
                return Err(error);
            }
        };
        if let Some(profile) = &mut Decoder::turn(&mut self.state)?.profile {
            profile.add_append(start.elapsed());
        }
        Ok(logits)
    }

    fn check(&self, tokens: &[u32], token_ids: usize) -> Result<(), SessionError> {
        if tokens.is_empty() {
            return Err(SessionError::NoTokens);
        }
        let context_tokens = self.engine.context_tokens();
        if tokens.len() > context_tokens.saturating_sub(self.tokens.len()) {
            return Err(SessionError::ContextFull {
                context_tokens,
                len: self.tokens.len(),
                added: tokens.len(),
            });
        }
        match tokens
            .iter()
            .enumerate()
            .find(|(_, token)| **token as usize >= token_ids)
        {
            Some((index, token)) => Err(SessionError::UnknownToken {
                token: *token,
                index,
                vocabulary: token_ids,
            }),
            None => Ok(()),
        }
    }

    fn run_chunks(
        &mut self,
        tokens: &[u32],
        chunk_tokens: usize,
        logits_for: LogitsFor,
        mut values: Vec<f32>,
    ) -> Result<Logits, SessionError> {
        let vocabulary = self.engine.graph().vocabulary;
        let mut left = tokens.len();
        let mut last = None;
        for chunk in tokens.chunks(chunk_tokens) {
            left -= chunk.len();
            let wanted = match logits_for {
                LogitsFor::EveryToken => chunk.len(),
                LogitsFor::LastToken if left == 0 => 1,
                LogitsFor::LastToken => 0,
            };
            let ropes = &self.engine.graph().ropes;
            Decoder::turn(&mut self.state)?.begin(ropes, chunk.len(), wanted)?;
            let output = Decoder::run(&mut self.state, chunk)?.into_arc_tensor();
            let computed = Logits::computed(output, vocabulary).map_err(ModelError::from)?;
            Decoder::turn(&mut self.state)?.cache.advance(chunk.len());
            self.tokens.extend_from_slice(chunk);
            if logits_for == LogitsFor::LastToken && computed.rows() == wanted {
                last = Some(computed);
                continue;
            }
            last = None;
            // A graph that does not keep the last rows only computes all of them: the wanted are the last.
            let rows = computed.as_slice();
            let unwanted = rows.len().saturating_sub(wanted * vocabulary);
            values.extend_from_slice(rows.get(unwanted..).unwrap_or_default());
        }
        Ok(match last {
            Some(last) => last,
            None => Logits::gathered(values, vocabulary),
        })
    }

    /// Takes the time of every operator from now on; what was measured before is forgotten.
    ///
    /// # Errors
    /// [`SessionError::Model`] when the session's state was lost.
    pub fn start_profile(&mut self) -> Result<(), SessionError> {
        let nodes = self.engine.graph().nodes.len();
        Decoder::turn(&mut self.state)?.profile = Some(Profile::new(nodes));
        Ok(())
    }

    /// Stops measuring and returns what was measured; `None` when nothing was asked for.
    ///
    /// # Errors
    /// [`SessionError::Model`] when the session's state was lost.
    pub fn take_profile(&mut self) -> Result<Option<Profile>, SessionError> {
        Ok(Decoder::turn(&mut self.state)?.profile.take())
    }

    /// Forgets every token from index `len` on; a longer `len` changes nothing.
    ///
    /// # Errors
    /// [`SessionError::Forgotten`] when sliding windows have dropped keys and values that the tokens before
    /// `len` need; the context is then as it was.
    pub fn truncate(&mut self, len: usize) -> Result<(), SessionError> {
        let turn = Decoder::turn(&mut self.state)?;
        if len < turn.cache.len() && !turn.cache.truncate(len) {
            return Err(SessionError::Forgotten {
                len: self.tokens.len(),
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
    /// [`SessionError::Model`] when the session's state was lost.
    pub fn keep_common_prefix(&mut self, tokens: &[u32]) -> Result<usize, SessionError> {
        let pairs = self.tokens.iter().zip(tokens);
        let common = pairs.take_while(|(here, there)| here == there).count();
        match self.truncate(common) {
            Err(SessionError::Forgotten { .. }) => self.reset().map(|()| 0),
            done => done.map(|()| common),
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) -> Result<(), SessionError> {
        self.truncate(0)
    }

    /// Bytes of keys and values that are kept now.
    ///
    /// # Errors
    /// [`SessionError::Model`] when the session's state was lost.
    pub fn kv_bytes(&mut self) -> Result<usize, SessionError> {
        Ok(Decoder::turn(&mut self.state)?.cache.size_bytes())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

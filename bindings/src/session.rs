//! One context of a model, filled with plain text.

use crate::error::NiwakiError;
use crate::exclusive::Exclusive;
use crate::options::GenerateOptions;
use crate::stream::{Finish, TokenStream};
use niwaki::TextError;
use std::sync::Arc;

/// One context of a model: text goes in and is continued.
#[derive(uniffi::Object)]
pub struct Session {
    session: Arc<Exclusive<niwaki::Session>>,
}

impl Session {
    pub(crate) fn new(session: niwaki::Session) -> Arc<Session> {
        let session = Exclusive::new(session);
        Arc::new(Session { session })
    }
}

#[uniffi::export]
impl Session {
    /// Adds `text` to the context and generates what follows. Errors come from the stream.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while another stream of this session goes on.
    pub fn generate(
        &self,
        text: String,
        options: GenerateOptions,
    ) -> Result<Arc<TokenStream>, NiwakiError> {
        self.session.stream(move |session, feed| {
            let engine = session.engine().clone();
            let tokenizer = engine.tokenizer().ok_or(TextError::NoTokenizer)?;
            let prompt = tokenizer.encode(&text, session.is_empty())?;
            let options = options.for_model(engine.generation_defaults());
            let reused_tokens = session.len();
            let mut generation = session
                .generate(&prompt, &options)
                .with_cancellation(feed.cancellation().clone());
            let new_tokens = feed.forward(&mut generation)?;
            Ok(Finish {
                reason: generation.finish_reason().into(),
                prompt_tokens: (reused_tokens + prompt.len()) as u64,
                reused_tokens: reused_tokens as u64,
                new_tokens,
            })
        })
    }

    /// Tokens in the context.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while a stream of this session goes on.
    pub fn len_tokens(&self) -> Result<u64, NiwakiError> {
        self.session.with(|session| Ok(session.len() as u64))
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while a stream of this session goes on.
    pub fn reset(&self) -> Result<(), NiwakiError> {
        self.session.with(|session| Ok(session.reset()?))
    }
}

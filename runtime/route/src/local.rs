//! Answers from the model on the device.

use niwaki::{
    Cancellation, Chat, ChatRequest, ChatTemplate, Engine, FinishReason, GenerateError, Session,
    TextError, Token,
};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a request that waits for its turn looks whether it was cancelled.
const CANCELLATION_POLL: Duration = Duration::from_millis(20);

/// The router's local backend. [`LocalChat`] is the usual one.
pub trait LocalModel: Send + Sync {
    /// Tokens that its context holds.
    fn context_tokens(&self) -> usize;

    /// Counts the prompt's tokens. It does not wait for an answer under way.
    ///
    /// # Errors
    /// [`GenerateError`] when there is no prompt; the model then cannot answer either.
    fn measure(&self, request: &ChatRequest) -> Result<PromptSize, GenerateError>;

    /// Answers, handing on every token until the answer is complete, `on_token` breaks off, or it is cancelled.
    ///
    /// # Errors
    /// [`GenerateError`].
    fn answer(
        &self,
        request: &ChatRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<LocalAnswer, GenerateError>;
}

/// How long a prompt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptSize {
    /// Its tokens.
    pub tokens: usize,
    /// How many of them are computed already, from turns before.
    pub computed_tokens: usize,
}

/// How a local answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAnswer {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt that were computed for it, and how long that took until the first token; `None`
    /// when there was none.
    pub prefill: Option<(usize, Duration)>,
}

/// One conversation with a model: requests are answered one after the other, and what a prompt has in common
/// with the one before is not computed again.
pub struct LocalChat {
    engine: Engine,
    template: ChatTemplate,
    chat: Mutex<Chat>,
}

impl LocalChat {
    /// Answers with the model's own chat template.
    ///
    /// # Errors
    /// As [`Engine::chat`].
    pub fn new(engine: &Engine) -> Result<LocalChat, GenerateError> {
        Ok(LocalChat::with_template(
            engine.session()?,
            engine.chat_template()?,
        ))
    }

    /// Answers in a session, with a template of the caller's choice.
    pub fn with_template(session: Session, template: ChatTemplate) -> LocalChat {
        LocalChat {
            engine: session.engine().clone(),
            template: template.clone(),
            chat: Mutex::new(Chat::new(session, template)),
        }
    }
}

impl LocalModel for LocalChat {
    fn context_tokens(&self) -> usize {
        self.engine.context_tokens()
    }

    fn measure(&self, request: &ChatRequest) -> Result<PromptSize, GenerateError> {
        let prompt = self.template.render(&request.messages, true)?;
        let tokenizer = self.engine.tokenizer().ok_or(TextError::NoTokenizer)?;
        let prompt = tokenizer.encode(&prompt, false)?;
        let computed_tokens = match self.chat.try_lock() {
            Ok(chat) => chat
                .session()
                .tokens()
                .iter()
                .zip(&prompt)
                .take_while(|(computed, wanted)| computed == wanted)
                .count(),
            Err(_) => 0,
        };
        Ok(PromptSize {
            tokens: prompt.len(),
            computed_tokens,
        })
    }

    fn answer(
        &self,
        request: &ChatRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<LocalAnswer, GenerateError> {
        let Some(mut chat) = lock(&self.chat, cancellation) else {
            return Ok(LocalAnswer::CANCELLED);
        };
        let start = Instant::now();
        let mut reply = chat
            .answer(request.clone())
            .with_cancellation(cancellation.clone());
        let computed = reply.prompt_tokens().saturating_sub(reply.reused_tokens());
        let mut answer = LocalAnswer::CANCELLED;
        for token in reply.by_ref() {
            let token = token?;
            answer
                .prefill
                .get_or_insert_with(|| (computed, start.elapsed()));
            if on_token(token).is_break() {
                return Ok(answer);
            }
        }
        answer.finish_reason = reply.finish_reason().unwrap_or(FinishReason::Failed);
        Ok(answer)
    }
}

impl LocalAnswer {
    const CANCELLED: LocalAnswer = LocalAnswer {
        finish_reason: FinishReason::Cancelled,
        prefill: None,
    };
}

/// Waits for its turn; `None` when it was cancelled before.
fn lock<'a, T>(mutex: &'a Mutex<T>, cancellation: &Cancellation) -> Option<MutexGuard<'a, T>> {
    loop {
        if cancellation.is_cancelled() {
            return None;
        }
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            // A chat whose answer panicked begins the next one from its messages.
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => thread::sleep(CANCELLATION_POLL),
        }
    }
}

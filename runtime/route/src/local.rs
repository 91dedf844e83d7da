//! Answers from a model on the device.

use crate::backend::{
    Backend, BackendAnswer, BackendFailure, BackendKind, Capabilities, PromptSize, Unanswered,
};
use crate::queue::{NotServed, Queue};
use crate::request::{Prompt, RouteRequest};
use niwaki::{
    Cancellation, Chat, ChatRequest, ChatTemplate, Engine, FinishReason, GenerateError, Session,
    TextError, Token,
};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Requests that wait for their turn, unless an app says otherwise.
const MAX_WAITING: usize = 64;

/// A model on the device. Requests are answered one after the other, in the order in which they came.
///
/// Conversations share one context: what a prompt has in common with the one before is not computed again. A text that is
/// continued has a context of its own.
pub struct LocalModel {
    name: String,
    engine: Engine,
    /// `None` when it only continues texts.
    template: Option<ChatTemplate>,
    /// The conversation before. `None`: there was none, or its answer panicked.
    chat: Queue<Option<Chat>>,
}

impl LocalModel {
    /// Answers conversations with the model's own chat template, and continues texts.
    ///
    /// # Errors
    /// As [`Engine::chat`].
    pub fn new(engine: &Engine) -> Result<LocalModel, GenerateError> {
        Ok(LocalModel::with_template(
            engine.session()?,
            engine.chat_template()?,
        ))
    }

    /// Answers conversations in a session, with a template of the caller's choice, and continues texts.
    pub fn with_template(session: Session, template: ChatTemplate) -> LocalModel {
        LocalModel {
            template: Some(template.clone()),
            ..LocalModel::with(session.engine().clone(), Some(Chat::new(session, template)))
        }
    }

    /// Only continues texts, as a model does that was not trained for conversations.
    pub fn without_chats(engine: &Engine) -> LocalModel {
        LocalModel::with(engine.clone(), None)
    }

    fn with(engine: Engine, chat: Option<Chat>) -> LocalModel {
        LocalModel {
            name: "device".into(),
            engine,
            template: None,
            chat: Queue::new(chat, MAX_WAITING),
        }
    }

    /// With a name of its own in records, instead of `device`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> LocalModel {
        self.name = name.into();
        self
    }

    /// Lets so many requests wait, instead of 64. One more is refused with [`BackendFailure::Busy`].
    #[must_use]
    pub fn with_max_waiting(mut self, max_waiting: usize) -> LocalModel {
        self.chat.set_max_waiting(max_waiting);
        self
    }

    /// How many requests wait for their turn.
    pub fn waiting(&self) -> usize {
        self.chat.waiting()
    }

    /// The conversation as the template writes it, in tokens.
    fn encode_chat(&self, messages: &[niwaki::Message]) -> Result<Vec<u32>, GenerateError> {
        let template = self.template.as_ref();
        let template = template.ok_or(niwaki::TemplateError::Missing)?;
        let prompt = template.render(messages, true)?;
        let tokenizer = self.engine.tokenizer().ok_or(TextError::NoTokenizer)?;
        // The template writes special tokens itself.
        Ok(tokenizer.encode(&prompt, false)?)
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        let tokenizer = self.engine.tokenizer().ok_or(TextError::NoTokenizer)?;
        Ok(tokenizer.encode(text, true)?)
    }

    fn reply(
        &self,
        chat: &mut Option<Chat>,
        messages: &[niwaki::Message],
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, GenerateError> {
        // Given back when the answer ends; after a panic nothing is known of its session.
        let mut current = match (chat.take(), &self.template) {
            (Some(chat), _) => chat,
            (None, Some(template)) => Chat::new(self.engine.session()?, template.clone()),
            (None, None) => return Err(niwaki::TemplateError::Missing.into()),
        };
        let start = Instant::now();
        let mut reply = current
            .answer(ChatRequest {
                messages: messages.to_vec(),
                options: request.options.clone(),
            })
            .with_cancellation(cancellation.clone());
        let computed = reply.prompt_tokens().saturating_sub(reply.reused_tokens());
        let given = give(&mut reply, start, on_token);
        let reason = reply.finish_reason();
        drop(reply);
        *chat = Some(current);
        Ok(given?.answer(reason, computed))
    }

    fn continue_text(
        &self,
        tokens: &[u32],
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, GenerateError> {
        let start = Instant::now();
        let mut session = self.engine.session()?;
        let mut generation = session
            .generate(tokens, &request.options)
            .with_cancellation(cancellation.clone());
        let given = give(&mut generation, start, on_token)?;
        Ok(given.answer(generation.finish_reason(), tokens.len()))
    }
}

impl Backend for LocalModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: BackendKind::Local,
            chats: self.template.is_some(),
            plain_prompts: true,
            context_tokens: Some(self.engine.context_tokens()),
        }
    }

    fn measure(&self, prompt: &Prompt) -> Result<Option<PromptSize>, BackendFailure> {
        let fresh = |tokens| {
            Ok(Some(PromptSize {
                tokens,
                computed_tokens: 0,
            }))
        };
        let prompt = match prompt {
            Prompt::Tokens { tokens, .. } => return fresh(tokens.len()),
            Prompt::Text(text) => return fresh(self.encode_text(text)?.len()),
            Prompt::Chat(messages) => self.encode_chat(messages)?,
        };
        let computed_tokens = self.chat.look(|chat| {
            let computed = chat.iter().flat_map(|chat| chat.session().tokens());
            let common = computed.zip(&prompt);
            common
                .take_while(|(computed, wanted)| computed == wanted)
                .count()
        });
        Ok(Some(PromptSize {
            tokens: prompt.len(),
            computed_tokens: computed_tokens.unwrap_or(0),
        }))
    }

    fn answer(
        &self,
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, Unanswered> {
        let mut chat = match self.chat.enter(cancellation) {
            Ok(turn) => turn,
            Err(NotServed::Cancelled) => {
                return Ok(BackendAnswer::ended(FinishReason::Cancelled));
            }
            Err(NotServed::Full { waiting }) => {
                return Err(BackendFailure::Busy { waiting }.into());
            }
        };
        let answer = match &request.prompt {
            Prompt::Chat(messages) => {
                self.reply(&mut chat, messages, request, cancellation, on_token)
            }
            Prompt::Text(text) => self
                .encode_text(text)
                .and_then(|tokens| self.continue_text(&tokens, request, cancellation, on_token)),
            Prompt::Tokens { tokens, .. } => {
                self.continue_text(tokens, request, cancellation, on_token)
            }
        };
        Ok(answer.map_err(BackendFailure::from)?)
    }
}

/// What was given out.
struct Given {
    /// How long it took to the first token.
    first_token: Option<Duration>,
    /// Nobody wanted more.
    broke_off: bool,
}

/// Hands tokens on until there are no more, or nobody wants them.
fn give(
    tokens: &mut dyn Iterator<Item = Result<Token, GenerateError>>,
    start: Instant,
    on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
) -> Result<Given, GenerateError> {
    let mut given = Given {
        first_token: None,
        broke_off: false,
    };
    for token in tokens {
        let token = token?;
        given.first_token.get_or_insert_with(|| start.elapsed());
        if on_token(token).is_break() {
            given.broke_off = true;
            break;
        }
    }
    Ok(given)
}

impl Given {
    /// The whole answer, whose prompt took so many tokens to compute.
    fn answer(self, reason: Option<FinishReason>, computed_tokens: usize) -> BackendAnswer {
        BackendAnswer {
            finish_reason: match self.broke_off {
                true => FinishReason::Cancelled,
                false => reason.unwrap_or(FinishReason::Failed),
            },
            prefill: self.first_token.map(|took| (computed_tokens, took)),
            cloud: None,
        }
    }
}

//! A conversation over several turns.

use super::options::{ContextEnd, GenerateOptions};
use super::outcome::{FinishReason, GenerateError, Token};
use super::run::{Beginning, Run};
use crate::cancellation::Cancellation;
use crate::session::{Engine, Session};
use crate::text::{ChatTemplate, Message, Role, TemplateError, TextError};

/// One turn of a conversation whose history the caller keeps: what a router or a server passes on.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The whole conversation, the last message being the one to answer.
    pub messages: Vec<Message>,
    /// How to answer.
    pub options: GenerateOptions,
}

/// A conversation: messages go in through the model's chat template, replies stream out.
///
/// Keys and values of earlier turns are kept: a reply computes only the tokens after the longest beginning that
/// its prompt has in common with what was computed before. The results are the same to the bit.
///
/// ```no_run
/// use niwaki::{Engine, GenerateOptions, Message, OpenOptions};
///
/// let engine = Engine::open("model.niwaki", &OpenOptions::default())?;
/// let mut chat = engine.chat()?;
/// chat.set_messages(vec![Message::system("Answer in one sentence.")]);
/// for token in chat.reply("Why is the sky blue?", &GenerateOptions::default()) {
///     print!("{}", token?.text);
/// }
/// for token in chat.reply("And at night?", &GenerateOptions::default()) {
///     print!("{}", token?.text);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Chat {
    session: Session,
    template: ChatTemplate,
    messages: Vec<Message>,
    /// Messages before this one are left out of the prompt, except those of the system.
    first_kept: usize,
}

impl Engine {
    /// The model's chat template.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] when it has none, and why it cannot be used.
    pub fn chat_template(&self) -> Result<ChatTemplate, TemplateError> {
        let source = self
            .bundle()
            .chat_template()
            .ok_or(TemplateError::Missing)?;
        ChatTemplate::new(source, self.generation_defaults().special_tokens.clone())
    }

    /// Begins a conversation with the model's chat template.
    ///
    /// # Errors
    /// [`GenerateError::Template`] when it has none that works, [`GenerateError::Session`] when a session cannot
    /// be made.
    pub fn chat(&self) -> Result<Chat, GenerateError> {
        Ok(Chat::new(self.session()?, self.chat_template()?))
    }
}

impl Chat {
    /// Begins a conversation in a session, with a template of the caller's choice.
    pub fn new(session: Session, template: ChatTemplate) -> Chat {
        Chat {
            session,
            template,
            messages: Vec::new(),
            first_kept: 0,
        }
    }

    /// The conversation so far, turns that were left out of the prompt included.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Replaces the conversation: to restore one, to begin with a system message, to begin anew. What it has in
    /// common with the one before stays computed.
    pub fn set_messages(&mut self, messages: Vec<Message>) {
        self.messages = messages;
        self.first_kept = 0;
    }

    /// Number of messages that replies do not see any more, by [`ContextEnd::ForgetOldest`].
    pub fn forgotten_messages(&self) -> usize {
        let before = self.messages.iter().take(self.first_kept);
        before
            .filter(|message| message.role != Role::System)
            .count()
    }

    /// The session the conversation runs in.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Adds a message of the user and generates the reply. Nothing is computed before the first token is asked
    /// for; errors come as items.
    ///
    /// When the reply ends, it joins the conversation. One that ends early - cancelled, failed, dropped, or because no
    /// token was allowed - joins it with the text that was given out; without any, the user's message is taken back
    /// too, so that the conversation is as it was.
    pub fn reply(&mut self, message: impl Into<String>, options: &GenerateOptions) -> Reply<'_> {
        let before = self.messages.len();
        self.messages.push(Message::user(message));
        Reply::new(self, before, options)
    }

    /// Answers a request: as [`set_messages`](Self::set_messages) and a reply to the last of them.
    pub fn answer(&mut self, request: ChatRequest) -> Reply<'_> {
        self.first_kept = 0;
        self.messages = request.messages;
        let before = self.messages.len().saturating_sub(1);
        Reply::new(self, before, &request.options)
    }

    /// The prompt's tokens, with old turns left out where that is asked for and needed.
    fn prompt(&mut self, options: &GenerateOptions) -> Result<Vec<u32>, GenerateError> {
        let context_tokens = self.session.engine().context_tokens();
        let prompt = self.encode()?;
        // The last token needs no room of its own.
        let new_tokens = options.max_new_tokens.saturating_sub(1);
        if options.context_end != ContextEnd::ForgetOldest
            || prompt.len().saturating_add(new_tokens) <= context_tokens
        {
            return Ok(prompt);
        }
        // Down to half of the context, so that not every turn from now on moves the beginning.
        let room = context_tokens
            .saturating_sub(new_tokens)
            .min(context_tokens / 2);
        let mut prompt = prompt;
        while prompt.len() > room && self.forget_turn() {
            prompt = self.encode()?;
        }
        Ok(prompt)
    }

    fn encode(&self) -> Result<Vec<u32>, GenerateError> {
        let kept = self.messages.iter().enumerate();
        let kept: Vec<Message> = kept
            .filter(|(index, message)| *index >= self.first_kept || message.role == Role::System)
            .map(|(_, message)| message.clone())
            .collect();
        let prompt = self.template.render(&kept, true)?;
        let tokenizer = self
            .session
            .engine()
            .tokenizer()
            .ok_or(TextError::NoTokenizer)?;
        // The template writes special tokens itself.
        Ok(tokenizer.encode(&prompt, false)?)
    }

    /// Leaves out the oldest turn, from one message of the user to the next. False when there is only one.
    fn forget_turn(&mut self) -> bool {
        let is_user = |(_, message): &(usize, &Message)| message.role == Role::User;
        let mut turns = self
            .messages
            .iter()
            .enumerate()
            .skip(self.first_kept)
            .filter(is_user);
        match turns.nth(1) {
            Some((next, _)) => {
                self.first_kept = next;
                true
            }
            None => false,
        }
    }
}

/// Generates a reply as it is iterated. Made by [`Chat::reply`].
pub struct Reply<'a> {
    chat: &'a mut Chat,
    /// Number of messages before the one that is answered.
    before: usize,
    text: String,
    prompt_tokens: usize,
    reused_tokens: usize,
    run: Result<Run, Option<GenerateError>>,
    cancellation: Cancellation,
}

impl<'a> Reply<'a> {
    fn new(chat: &'a mut Chat, before: usize, options: &GenerateOptions) -> Reply<'a> {
        let mut reply = Reply {
            chat,
            before,
            text: String::new(),
            prompt_tokens: 0,
            reused_tokens: 0,
            run: Err(None),
            cancellation: Cancellation::new(),
        };
        reply.run = reply.begin(options).map_err(Some);
        reply
    }

    fn begin(&mut self, options: &GenerateOptions) -> Result<Run, GenerateError> {
        let prompt = self.chat.prompt(options)?;
        let session = &mut self.chat.session;
        self.prompt_tokens = prompt.len();
        // The last token is computed in any case: the first of the reply follows from it.
        let most = prompt.len().saturating_sub(1);
        self.reused_tokens = session.keep_common_prefix(prompt.get(..most).unwrap_or_default())?;
        let options = GenerateOptions {
            // Old turns were left out already, and half a turn is never.
            context_end: match options.context_end {
                ContextEnd::ForgetOldest => ContextEnd::Stop,
                other => other,
            },
            ..options.clone()
        };
        let pending = prompt.get(self.reused_tokens..).unwrap_or_default();
        let mut run = Run::new(session, pending, Beginning::NewText, &options)?;
        run.set_cancellation(self.cancellation.clone());
        let engine = session.engine();
        let end = engine.generation_defaults().special_tokens.get("eos_token");
        if let Some(end) = end.and_then(|end| engine.tokenizer()?.token_id(end)) {
            run.end_at(end);
        }
        Ok(run)
    }

    /// Ends when `cancellation` is cancelled, instead of a cancellation of its own.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: Cancellation) -> Self {
        if let Ok(run) = &mut self.run {
            run.set_cancellation(cancellation.clone());
        }
        self.cancellation = cancellation;
        self
    }

    /// What cancels it: clone it into the thread or the button that does.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Why it ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        match &self.run {
            Ok(run) => run.finish_reason(),
            Err(Some(_)) => None,
            Err(None) => Some(FinishReason::Failed),
        }
    }

    /// Tokens of the prompt: the whole conversation as the template writes it.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens of the prompt that were computed in earlier turns.
    pub fn reused_tokens(&self) -> usize {
        self.reused_tokens
    }
}

impl Iterator for Reply<'_> {
    type Item = Result<Token, GenerateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = match &mut self.run {
            Ok(run) => run.next(&mut self.chat.session),
            Err(error) => error.take().map(Err),
        };
        if let Some(Ok(token)) = &item {
            self.text.push_str(&token.text);
        }
        item
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        let whole = matches!(
            self.finish_reason(),
            Some(
                FinishReason::EndOfText
                    | FinishReason::StopToken
                    | FinishReason::StopString
                    | FinishReason::Filtered
                    | FinishReason::MaxTokens
                    | FinishReason::MaxTime
                    | FinishReason::ContextFull
            )
        );
        if whole || !text.is_empty() {
            self.chat.messages.push(Message::assistant(text));
        } else {
            self.chat.messages.truncate(self.before);
        }
    }
}

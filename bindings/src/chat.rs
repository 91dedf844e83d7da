//! A conversation.

use crate::error::NiwakiError;
use crate::exclusive::Exclusive;
use crate::options::GenerateOptions;
use crate::stream::{Finish, TokenStream};
use std::sync::Arc;

/// Who a message is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Role {
    /// The app: how the model shall behave.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct Message {
    /// Who it is from.
    pub role: Role,
    /// Its text.
    pub content: String,
}

impl From<Message> for niwaki::Message {
    fn from(message: Message) -> Self {
        match message.role {
            Role::System => niwaki::Message::system(message.content),
            Role::User => niwaki::Message::user(message.content),
            Role::Assistant => niwaki::Message::assistant(message.content),
        }
    }
}

impl From<&niwaki::Message> for Message {
    fn from(message: &niwaki::Message) -> Self {
        Message {
            role: match message.role {
                niwaki::Role::System => Role::System,
                niwaki::Role::Assistant => Role::Assistant,
                // There are no others yet.
                _ => Role::User,
            },
            content: message.content.clone(),
        }
    }
}

/// A conversation: messages go in through the model's chat template, replies stream out. Keys and values of
/// earlier turns are kept.
#[derive(uniffi::Object)]
pub struct Chat {
    chat: Arc<Exclusive<niwaki::Chat>>,
}

impl Chat {
    pub(crate) fn new(chat: niwaki::Chat) -> Arc<Chat> {
        let chat = Exclusive::new(chat);
        Arc::new(Chat { chat })
    }
}

#[uniffi::export]
impl Chat {
    /// Adds a message of the user and generates the reply. Errors come from the stream.
    ///
    /// The reply joins the conversation, also one that was cancelled, with the text it had; without any, the
    /// message is taken back.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while another reply goes on.
    pub fn reply(
        &self,
        message: String,
        options: GenerateOptions,
    ) -> Result<Arc<TokenStream>, NiwakiError> {
        self.chat.stream(move |chat, feed| {
            let options = options.for_model(chat.session().engine().generation_defaults());
            let mut reply = chat
                .reply(message, &options)
                .with_cancellation(feed.cancellation().clone());
            let new_tokens = feed.forward(&mut reply)?;
            Ok(Finish {
                reason: reply.finish_reason().into(),
                prompt_tokens: reply.prompt_tokens() as u64,
                reused_tokens: reply.reused_tokens() as u64,
                new_tokens,
            })
        })
    }

    /// The conversation so far.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while a reply goes on.
    pub fn messages(&self) -> Result<Vec<Message>, NiwakiError> {
        self.chat
            .with(|chat| Ok(chat.messages().iter().map(Message::from).collect()))
    }

    /// Replaces the conversation. What it has in common with the one before stays computed.
    ///
    /// # Errors
    /// [`NiwakiError::Busy`] while a reply goes on.
    pub fn set_messages(&self, messages: Vec<Message>) -> Result<(), NiwakiError> {
        let messages = messages.into_iter().map(niwaki::Message::from).collect();
        self.chat.with(|chat| {
            chat.set_messages(messages);
            Ok(())
        })
    }
}

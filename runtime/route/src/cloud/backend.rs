//! The endpoint among a router's backends.

use super::client::{CloudAnswer, CloudClient};
use super::error::CloudError;
use crate::backend::{
    Backend, BackendAnswer, BackendFailure, BackendKind, Capabilities, PromptSize, Unanswered,
};
use crate::request::{Prompt, RouteRequest};
use niwaki::{Cancellation, FinishReason, Message, Token};
use std::borrow::Cow;
use std::ops::ControlFlow;

impl Backend for CloudClient {
    fn name(&self) -> &str {
        &self.options().name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: BackendKind::Cloud,
            chats: true,
            plain_prompts: self.options().text_as_message,
            context_tokens: None,
        }
    }

    fn measure(&self, _: &Prompt) -> Result<Option<PromptSize>, BackendFailure> {
        Ok(None)
    }

    fn answer(
        &self,
        request: &RouteRequest,
        cancellation: &Cancellation,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<BackendAnswer, Unanswered> {
        let messages = self.messages(&request.prompt)?;
        let answer = self.stream(&messages, &request.options, cancellation, &mut |text| {
            on_token(Token {
                id: None,
                text: text.to_owned(),
                log_probs: None,
            })
        });
        match answer {
            Ok(answer) => Ok(BackendAnswer {
                finish_reason: finish_reason(&answer),
                prefill: None,
                cloud: Some(answer),
            }),
            Err(failure) if failure.error == CloudError::Cancelled => {
                Ok(BackendAnswer::ended(FinishReason::Cancelled))
            }
            Err(failure) => Err(Unanswered {
                failure: failure.error.into(),
                sent: failure.sent,
            }),
        }
    }
}

impl CloudClient {
    fn messages<'a>(&self, prompt: &'a Prompt) -> Result<Cow<'a, [Message]>, CloudError> {
        match prompt {
            Prompt::Chat(messages) => Ok(Cow::Borrowed(messages)),
            Prompt::Text(text) | Prompt::Tokens { text, .. } if self.options().text_as_message => {
                Ok(Cow::Owned(vec![Message::user(text.as_str())]))
            }
            Prompt::Text(_) | Prompt::Tokens { .. } => Err(CloudError::PlainPrompt),
        }
    }
}

fn finish_reason(answer: &CloudAnswer) -> FinishReason {
    match answer.finish_reason.as_deref() {
        Some("length") => FinishReason::MaxTokens,
        _ => FinishReason::EndOfText,
    }
}

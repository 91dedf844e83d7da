//! Between the device and an endpoint: arguments and the answer of `niwaki run`.

use super::error::CommandError;
use super::generation::PrintedLogProbs;
use super::model::Model;
use clap::{Args, ValueEnum};
use niwaki::{FinishReason, GenerateError, GenerateOptions};
use niwaki_http::HttpsTransport;
use niwaki_route::{
    BackendId, BackendKind, CloudClient, CloudOptions, Decision, LocalModel, Policy, Prompt,
    Reason, RouteRequest, RoutedAnswer, Router, RoutingMode,
};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Holds the endpoint's key, so that it is in no list of processes and no shell history.
const KEY_VARIABLE: &str = "NIWAKI_CLOUD_API_KEY";

/// So many tokens may wait to be printed before the model waits too.
const WAITING_TOKENS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Where an answer may come from.
#[derive(Args)]
#[command(next_help_heading = "Routing")]
pub(super) struct RoutingArgs {
    /// Let an OpenAI-compatible endpoint answer what the device should not, for example https://api.example.com.
    /// The key is read from NIWAKI_CLOUD_API_KEY.
    #[arg(long, value_name = "URL", requires = "cloud_model")]
    cloud_endpoint: Option<String>,
    /// The model to ask the endpoint for.
    #[arg(long, value_name = "NAME", requires = "cloud_endpoint")]
    cloud_model: Option<String>,
    /// Allow http to another machine: text and key then travel unencrypted.
    #[arg(long, requires = "cloud_endpoint")]
    cloud_allow_plaintext: bool,
    /// Send longer prompts to the endpoint.
    #[arg(long, value_name = "N")]
    max_local_prompt_tokens: Option<usize>,
    /// Who answers, as far as the limits allow it.
    #[arg(long, value_enum, default_value_t = Mode::PreferLocal, value_name = "MODE")]
    routing: Mode,
    /// Never let this prompt leave the device: no connection is opened for it.
    #[arg(long)]
    on_device_only: bool,
    /// Say on stderr who answered and why.
    #[arg(long)]
    explain: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// The device, never an endpoint.
    LocalOnly,
    /// The device, else the endpoint.
    PreferLocal,
    /// The endpoint, else the device.
    PreferCloud,
    /// The endpoint, never the device.
    CloudOnly,
}

impl From<Mode> for RoutingMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::LocalOnly => RoutingMode::LocalOnly,
            Mode::PreferLocal => RoutingMode::PreferLocal,
            Mode::PreferCloud => RoutingMode::PreferCloud,
            Mode::CloudOnly => RoutingMode::CloudOnly,
        }
    }
}

/// What came of it.
pub(super) struct Answered {
    pub(super) text: String,
    /// Tokens of the device's model; an endpoint tells only its text.
    pub(super) tokens: Vec<u32>,
    /// Of each of those tokens, where they were asked for.
    pub(super) log_probs: Vec<PrintedLogProbs>,
    /// How many, by whoever answered; 0 if an endpoint did not count.
    pub(super) generated_tokens: usize,
    pub(super) finish_reason: FinishReason,
    pub(super) first_token: Duration,
    pub(super) decision: Decision,
}

impl RoutingArgs {
    /// Continues a text on the device, or has the endpoint answer it as the message of a user, and hands every piece of
    /// text on as it comes.
    pub(super) fn answer(
        &self,
        model: &Model,
        prompt: Prompt,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> Result<(), CommandError>,
    ) -> Result<Answered, CommandError> {
        let request = RouteRequest {
            prompt,
            options: options.clone(),
            on_device_only: self.on_device_only,
        };
        let start = Instant::now();
        let mut stream = self
            .router(model)?
            .stream(request, WAITING_TOKENS)
            .map_err(|error| CommandError::Generate(GenerateError::Thread(error)))?;
        let mut first_token = None;
        let (mut text, mut tokens, mut log_probs) = (String::new(), Vec::new(), Vec::new());
        for token in stream.by_ref() {
            first_token.get_or_insert_with(|| start.elapsed());
            tokens.extend(token.id);
            log_probs.extend(PrintedLogProbs::of(&token));
            text.push_str(&token.text);
            on_text(&token.text)?;
        }
        if self.explain
            && let Some(decision) = stream.decision()
        {
            eprint!("{}", explanation(&decision));
        }
        let RoutedAnswer {
            finish_reason,
            decision,
            cloud,
        } = stream.into_end()?;
        let counted = cloud.and_then(|cloud| cloud.usage);
        Ok(Answered {
            text,
            generated_tokens: match counted {
                Some(usage) => usage.completion_tokens as usize,
                None => tokens.len(),
            },
            tokens,
            log_probs,
            finish_reason,
            first_token: first_token.unwrap_or_default(),
            decision,
        })
    }

    fn router(&self, model: &Model) -> Result<Arc<Router>, CommandError> {
        let router = Router::new(Policy {
            mode: self.routing.into(),
            max_local_prompt_tokens: self.max_local_prompt_tokens,
            max_first_token_ms: None,
        })
        .with_backend(Arc::new(LocalModel::without_chats(model.engine())));
        let (Some(endpoint), Some(name)) = (&self.cloud_endpoint, &self.cloud_model) else {
            return Ok(Arc::new(router));
        };
        let options = CloudOptions {
            allow_plaintext: self.cloud_allow_plaintext,
            text_as_message: true,
            ..CloudOptions::new(endpoint, name)
        };
        let cloud = CloudClient::new(
            options,
            Arc::new(HttpsTransport::new()),
            Arc::new(|| {
                std::env::var(KEY_VARIABLE)
                    .ok()
                    .filter(|key| !key.is_empty())
            }),
        )
        .map_err(CommandError::Endpoint)?;
        Ok(Arc::new(router.with_backend(Arc::new(cloud))))
    }
}

/// The decision in words, one fact a line.
fn explanation(decision: &Decision) -> String {
    let mut text = String::new();
    for tried in &decision.tried {
        let times = match tried.sent {
            1 => String::new(),
            times => format!(", sent {times} times"),
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "tried {}: {} ({} ms{times})",
            name(&tried.backend),
            tried.failure,
            tried.took_ms
        );
    }
    let answered_by = decision.answered_by.as_ref().map_or("nobody", name);
    let _ = writeln!(text, "answered by: {answered_by}");
    if let Some(reason) = &decision.reason {
        let _ = writeln!(text, "because: {}", in_words(reason));
    }
    if let Some(tokens) = decision.prompt_tokens {
        let _ = writeln!(text, "prompt: {tokens} tokens");
    }
    text
}

/// There is one of each kind.
fn name(backend: &BackendId) -> &'static str {
    match backend.kind {
        BackendKind::Local => "the device",
        BackendKind::Cloud => "the endpoint",
    }
}

fn in_words(reason: &Reason) -> String {
    match reason {
        Reason::Mode => "the routing mode prefers it".to_owned(),
        Reason::OnDeviceOnly => "the prompt may not leave the device".to_owned(),
        Reason::NoEndpoint => "there is no endpoint".to_owned(),
        Reason::NoLocalModel => "there is no model on the device".to_owned(),
        Reason::PromptOverLimit {
            prompt_tokens,
            max_local_prompt_tokens,
        } => format!(
            "the prompt has {prompt_tokens} tokens, more than the {max_local_prompt_tokens} the device should take"
        ),
        Reason::PromptOverContext {
            prompt_tokens,
            context_tokens,
        } => {
            format!("the prompt has {prompt_tokens} tokens and the context holds {context_tokens}")
        }
        Reason::TooSlow {
            predicted_ms,
            max_first_token_ms,
        } => format!(
            "the device would take {predicted_ms} ms to its first token, more than {max_first_token_ms}"
        ),
        _ => "of its policy".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use niwaki_route::{BackendFailure, CloudError, Tried};

    #[test]
    fn a_decision_is_told_in_the_order_it_happened() {
        let backend = |name: &str, kind| BackendId {
            name: name.to_owned(),
            kind,
        };
        let decision = Decision {
            answered_by: Some(backend("device", BackendKind::Local)),
            reason: Some(Reason::Mode),
            tried: vec![Tried {
                backend: backend("endpoint", BackendKind::Cloud),
                failure: BackendFailure::Cloud(CloudError::Server {
                    status: 503,
                    code: None,
                }),
                sent: 3,
                took_ms: 70,
            }],
            mode: RoutingMode::PreferCloud,
            on_device_only: false,
            prompt_tokens: Some(4),
            context_tokens: Some(512),
            max_local_prompt_tokens: None,
            predicted_first_token_ms: None,
            first_text_ms: Some(90),
        };
        assert_eq!(
            explanation(&decision),
            "tried the endpoint: the endpoint failed (status 503) (70 ms, sent 3 times)\n\
             answered by: the device\n\
             because: the routing mode prefers it\n\
             prompt: 4 tokens\n"
        );
    }
}

//! Chat templates: from messages to the prompt a model was trained on.

use super::message::Message;
use super::python_json;
use super::strftime::strftime;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Longest template that is read; the longest known has about 20 KB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// What one rendering may take: a unit is an instruction or 64 bytes of memory or output.
const FUEL: u64 = 200_000;
/// So many times may a template go over the messages' text beyond that.
const PASSES: u64 = 32;
/// The template's name, for the template engine.
const NAME: &str = "chat template";

/// Why there is no prompt. No variant carries the text of messages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model has no chat template: it was not made for chats.
    #[error(
        "the model has no chat template, so it was probably not trained for chats; continue a plain text with it, \
         or bring a template of your own"
    )]
    Missing,
    /// Longer than any real one.
    #[error("the chat template has {size_bytes} bytes, more than the {MAX_TEMPLATE_BYTES} allowed")]
    TooLong {
        /// Its length.
        size_bytes: usize,
    },
    /// It is not Jinja.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template refuses these messages, for example because roles do not alternate.
    #[error("the chat template refuses the messages{}", .0.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    Refused(Option<String>),
    /// The template does not work with these messages.
    #[error("the chat template fails in line {line}: {problem}")]
    Render {
        /// Line of the template.
        line: usize,
        /// What kind of failure it is.
        problem: String,
    },
    /// It wants to compute or write without end.
    #[error("the chat template takes too much work or writes too much; it is broken or hostile")]
    TooMuch,
}

/// A chat template as Hugging Face models bring it: Jinja, rendered with the settings and functions that
/// transformers gives it. Cloning shares it.
///
/// Templates come from model files, so they are not trusted: work and output are bounded, and they reach nothing
/// but messages, the model's special tokens and today's date (UTC).
///
/// ```
/// use niwaki::{ChatTemplate, Message};
///
/// let source = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}";
/// let template = ChatTemplate::new(source, [("eos_token", "</s>")])?;
/// assert_eq!(template.render(&[Message::user("Hello")], true)?, "<user>Hello</s>");
/// # Ok::<(), niwaki::TemplateError>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    special_tokens: Arc<BTreeMap<String, String>>,
}

impl ChatTemplate {
    /// Reads a template. It can use the special tokens by name: `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`TemplateError::TooLong`] and [`TemplateError::Syntax`].
    pub fn new<K: Into<String>, V: Into<String>>(
        source: &str,
        special_tokens: impl IntoIterator<Item = (K, V)>,
    ) -> Result<ChatTemplate, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong {
                size_bytes: source.len(),
            });
        }
        let source = without_generation_tags(source);
        environment(0)?
            .template_from_named_str(NAME, &source)
            .map_err(syntax)?;
        let special_tokens = special_tokens
            .into_iter()
            .map(|(name, token)| (name.into(), token.into()));
        Ok(ChatTemplate {
            source: source.into(),
            special_tokens: Arc::new(special_tokens.collect()),
        })
    }

    /// The prompt for `messages`. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Refused`], [`TemplateError::Render`] and [`TemplateError::TooMuch`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let text_bytes = messages.iter().fold(0u64, |sum, message| {
            sum.saturating_add(message.content.len() as u64)
        });
        let environment = environment(text_bytes)?;
        let template = environment
            .template_from_named_str(NAME, &self.source)
            .map_err(syntax)?;
        let messages = messages.iter().map(|message| {
            Value::from_pairs([
                ("role", message.role.as_str()),
                ("content", message.content.as_str()),
            ])
        });
        let variables = [
            ("messages", messages.collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let special_tokens = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        template
            .render(Value::from_pairs(special_tokens.chain(variables)))
            .map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &Error) -> TemplateError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Refusal(said)) = error.downcast_ref() {
                // A template could put a message's text into what it says: only its own words are passed on.
                let own = self.source.contains(said.as_str());
                return TemplateError::Refused(own.then(|| said.clone()));
            }
            cause = error.source();
        }
        match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::TooMuch,
            kind => TemplateError::Render {
                line: error.line().unwrap_or(0),
                problem: kind.to_string(),
            },
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source_bytes", &self.source.len())
            .field("special_tokens", &self.special_tokens)
            .finish()
    }
}

/// As transformers sets it up (`transformers.utils.chat_template_utils`).
fn environment(text_bytes: u64) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let blocks = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(syntax)?;
    environment.set_syntax(blocks);
    environment.set_fuel(Some(FUEL.saturating_add(text_bytes / 64 * PASSES)));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python_json::to_json);
    environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(said)))
    });
    environment.add_function("strftime_now", |format: String| {
        strftime(&format, SystemTime::now())
    });
    Ok(environment)
}

/// Nothing but the template itself is in such a message.
fn syntax(error: Error) -> TemplateError {
    TemplateError::Syntax(error.to_string())
}

/// What a template says with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refusal(String);

/// `{% generation %}` marks the model's text for training in transformers, and changes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        result.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let replacement = match inner.trim_matches(['-', '+']).trim() {
            "generation" => Some(("generation", "if true")),
            "endgeneration" => Some(("endgeneration", "endif")),
            _ => None,
        };
        match replacement {
            Some((from, to)) => result.push_str(&tag.replacen(from, to, 1)),
            None => result.push_str(tag),
        }
        rest = after;
    }
    result.push_str(rest);
    result
}

//! A model that generates text.

use crate::error::NiwakiError;
use crate::records::{FinishReason, GenerationOptions, MemoryPlan, ModelOptions};
use niwaki::{Engine, GenerateOptions, OpenOptions};
use std::sync::Arc;

/// Receives text as it is generated, on the thread that called `generate`.
#[uniffi::export(with_foreign)]
pub trait TokenListener: Send + Sync {
    /// The next piece of text, of whole characters. False stops the generation.
    fn on_text(&self, text: String) -> bool;
}

/// An opened model; may be used from several threads at once.
#[derive(uniffi::Object)]
pub struct Model {
    engine: Engine,
}

/// States what opening the bundle at `path` would take, before anything is loaded.
///
/// # Errors
/// [`NiwakiError`] when the bundle is not valid.
#[uniffi::export]
pub fn memory_plan(path: String, options: ModelOptions) -> Result<MemoryPlan, NiwakiError> {
    Ok((&Engine::plan(path, &OpenOptions::from(&options))?).into())
}

#[uniffi::export]
impl Model {
    /// Opens the bundle at `path`. Call it away from the main thread: it may read the whole file.
    ///
    /// # Errors
    /// [`NiwakiError`].
    #[uniffi::constructor]
    pub fn open(path: String, options: ModelOptions) -> Result<Arc<Model>, NiwakiError> {
        let engine = Engine::open(path, &OpenOptions::from(&options))?;
        Ok(Arc::new(Model { engine }))
    }

    /// Name of the model.
    pub fn name(&self) -> String {
        self.engine.manifest().name.clone()
    }

    /// Tokens the context holds.
    pub fn context_tokens(&self) -> u64 {
        self.engine.context_tokens() as u64
    }

    /// What this model takes at its peak.
    pub fn memory_plan(&self) -> MemoryPlan {
        self.engine.memory_plan().into()
    }

    /// Continues `prompt` in a context of its own and gives the text to `listener` as it comes.
    ///
    /// # Errors
    /// [`NiwakiError`]; text given out before stays valid.
    pub fn generate(
        &self,
        prompt: String,
        options: GenerationOptions,
        listener: Arc<dyn TokenListener>,
    ) -> Result<FinishReason, NiwakiError> {
        let tokenizer = self
            .engine
            .tokenizer()
            .ok_or_else(|| NiwakiError::InvalidBundle("the bundle has no tokenizer".into()))?;
        let prompt = tokenizer.encode(&prompt, true)?;
        let mut session = self.engine.session()?;
        let mut generation = session.generate(&prompt, &GenerateOptions::from(&options));
        for token in generation.by_ref() {
            let text = token?.text;
            if !text.is_empty() && !listener.on_text(text) {
                return Ok(FinishReason::Stopped);
            }
        }
        Ok(generation.finish_reason().into())
    }
}

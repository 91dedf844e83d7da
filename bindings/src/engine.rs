//! An opened model.

use crate::chat::Chat;
use crate::error::NiwakiError;
use crate::memory::MemoryPlan;
use crate::options::OpenOptions;
use crate::session::Session;
use crate::source::{BundleSource, duplicate};
use std::sync::Arc;

/// An opened model. Its sessions and chats keep it open.
#[derive(uniffi::Object)]
pub struct Engine {
    engine: niwaki::Engine,
}

/// States what opening a bundle would take, before any weights are read.
///
/// # Errors
/// [`NiwakiError`] when the bundle is not valid.
#[uniffi::export]
pub fn memory_plan(source: BundleSource, options: OpenOptions) -> Result<MemoryPlan, NiwakiError> {
    let options = niwaki::OpenOptions::from(&options);
    let plan = match source {
        BundleSource::Path { path } => niwaki::Engine::plan(path, &options)?,
        BundleSource::Descriptor { fd, offset, length } => {
            niwaki::Engine::plan_file(&duplicate(fd)?, offset, length, &options)?
        }
    };
    Ok((&plan).into())
}

impl Engine {
    pub(crate) fn engine(&self) -> &niwaki::Engine {
        &self.engine
    }
}

#[uniffi::export]
impl Engine {
    /// Opens a bundle. It may read the whole file to verify it.
    ///
    /// # Errors
    /// [`NiwakiError`].
    #[uniffi::constructor]
    pub fn open(source: BundleSource, options: OpenOptions) -> Result<Arc<Engine>, NiwakiError> {
        let options = niwaki::OpenOptions::from(&options);
        let engine = match source {
            BundleSource::Path { path } => niwaki::Engine::open(path, &options)?,
            BundleSource::Descriptor { fd, offset, length } => {
                niwaki::Engine::open_file(&duplicate(fd)?, offset, length, &options)?
            }
        };
        Ok(Arc::new(Engine { engine }))
    }

    /// Name of the model.
    pub fn name(&self) -> String {
        self.engine.manifest().name.clone()
    }

    /// Tokens the context holds.
    pub fn context_tokens(&self) -> u64 {
        self.engine.context_tokens() as u64
    }

    /// What the engine with one session takes at its peak.
    pub fn memory_plan(&self) -> MemoryPlan {
        self.engine.memory_plan().into()
    }

    /// Whether the model has a chat template that works.
    pub fn can_chat(&self) -> bool {
        self.engine.chat_template().is_ok()
    }

    /// Begins a session with an empty context.
    ///
    /// # Errors
    /// [`NiwakiError`] when its state cannot be made.
    pub fn session(&self) -> Result<Arc<Session>, NiwakiError> {
        Ok(Session::new(self.engine.session()?))
    }

    /// Begins a conversation.
    ///
    /// # Errors
    /// [`NiwakiError::NoChat`] when the model has no chat template that works.
    pub fn chat(&self) -> Result<Arc<Chat>, NiwakiError> {
        Ok(Chat::new(self.engine.chat()?))
    }
}

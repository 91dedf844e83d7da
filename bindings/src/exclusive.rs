//! A session or chat that one stream at a time uses.

use crate::error::NiwakiError;
use crate::stream::{Feed, Finish, TokenStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What streams take turns with. A turn that was cancelled is waited for: it ends within one layer's work. One
/// that still goes on is not, since only its reader knows how long that takes.
pub(crate) struct Exclusive<T> {
    /// Poisoned by a panic, after which nothing can be said about the value.
    value: Mutex<T>,
    last: Mutex<Weak<TokenStream>>,
}

impl<T: Send + 'static> Exclusive<T> {
    pub(crate) fn new(value: T) -> Arc<Exclusive<T>> {
        Arc::new(Exclusive {
            value: Mutex::new(value),
            last: Mutex::default(),
        })
    }

    /// Uses the value between streams.
    pub(crate) fn with<R>(
        &self,
        work: impl FnOnce(&mut T) -> Result<R, NiwakiError>,
    ) -> Result<R, NiwakiError> {
        let last = self.last()?;
        let result = work(&mut *self.value()?);
        drop(last);
        result
    }

    /// Starts a stream of what `work` generates.
    pub(crate) fn stream(
        self: &Arc<Self>,
        work: impl FnOnce(&mut T, &Feed<'_>) -> Result<Finish, NiwakiError> + Send + 'static,
    ) -> Result<Arc<TokenStream>, NiwakiError> {
        let mut last = self.last()?;
        let this = self.clone();
        let stream = TokenStream::start(move |feed| work(&mut *this.value()?, feed))?;
        *last = Arc::downgrade(&stream);
        Ok(stream)
    }

    /// The place of the stream that went before, which goes on no more.
    fn last(&self) -> Result<MutexGuard<'_, Weak<TokenStream>>, NiwakiError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.upgrade() {
            Some(stream) if stream.goes_on() => Err(NiwakiError::Busy),
            _ => Ok(last),
        }
    }

    fn value(&self) -> Result<MutexGuard<'_, T>, NiwakiError> {
        self.value.lock().map_err(|_| NiwakiError::panicked())
    }
}

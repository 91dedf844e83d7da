//! The library's log lines, for the app's own log.

use crate::error::NiwakiError;
use std::sync::{Arc, PoisonError, RwLock};

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an app's developer may want to know.
    Info,
    /// What a developer of this library may want to know.
    Debug,
    /// Everything.
    Trace,
}

/// Takes log lines, on whichever thread they come up. Lines never hold text of users.
#[uniffi::export(with_foreign)]
pub trait LogSink: Send + Sync {
    /// Takes one line. `target` is the module it comes from.
    ///
    /// # Errors
    /// None that matter: a line that cannot be taken is lost.
    fn log(&self, level: LogLevel, target: String, message: String) -> Result<(), NiwakiError>;
}

/// Gives log lines of at most `max_level` to `sink` from now on; without a sink, to nobody.
///
/// # Errors
/// [`NiwakiError::InvalidArgument`] when the program set a logger of its own for Rust's `log` crate.
#[uniffi::export]
pub fn set_log_sink(
    sink: Option<Arc<dyn LogSink>>,
    max_level: LogLevel,
) -> Result<(), NiwakiError> {
    let level = match (&sink, max_level) {
        (None, _) => log::LevelFilter::Off,
        (_, LogLevel::Error) => log::LevelFilter::Error,
        (_, LogLevel::Warn) => log::LevelFilter::Warn,
        (_, LogLevel::Info) => log::LevelFilter::Info,
        (_, LogLevel::Debug) => log::LevelFilter::Debug,
        (_, LogLevel::Trace) => log::LevelFilter::Trace,
    };
    let mut current = BRIDGE.sink.write().unwrap_or_else(PoisonError::into_inner);
    if !current.installed {
        log::set_logger(&BRIDGE).map_err(|_| NiwakiError::InvalidArgument {
            details: "the program has a logger for Rust's log crate already; use that".into(),
        })?;
    }
    *current = Sink {
        installed: true,
        sink,
    };
    log::set_max_level(level);
    Ok(())
}

static BRIDGE: Bridge = Bridge {
    sink: RwLock::new(Sink {
        installed: false,
        sink: None,
    }),
};

struct Bridge {
    sink: RwLock<Sink>,
}

struct Sink {
    installed: bool,
    sink: Option<Arc<dyn LogSink>>,
}

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Other crates do not promise to keep users' text out of their lines.
        metadata.target().starts_with("niwaki")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The sink is called without the lock: it may set another one.
        let current = self.sink.read().unwrap_or_else(PoisonError::into_inner);
        let sink = current.sink.clone();
        drop(current);
        let Some(sink) = sink else {
            return;
        };
        let level = match record.level() {
            log::Level::Error => LogLevel::Error,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Info => LogLevel::Info,
            log::Level::Debug => LogLevel::Debug,
            log::Level::Trace => LogLevel::Trace,
        };
        let line = sink.log(level, record.target().into(), record.args().to_string());
        drop(line);
    }

    fn flush(&self) {}
}

//! Workspaces that wait for the next run.

use crate::model::{Model, ModelError, Workspace};
use std::sync::{Mutex, PoisonError};

/// Workspaces of one engine. A run borrows one, so sessions that do not run at the same time share theirs; as many are
/// kept as there are sessions.
#[derive(Default)]
pub(super) struct Workspaces(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    idle: Vec<Workspace>,
    sessions: usize,
}

impl Workspaces {
    /// One session more may run.
    pub(super) fn enter(&self) {
        self.kept(|kept| kept.sessions += 1);
    }

    /// One session less.
    pub(super) fn leave(&self) {
        let unused = self.kept(|kept| {
            kept.sessions = kept.sessions.saturating_sub(1);
            let sessions = kept.sessions.min(kept.idle.len());
            kept.idle.split_off(sessions)
        });
        // Not under the lock: giving memory back takes its time.
        drop(unused);
    }

    /// Does `work` with a workspace that nobody else has. One whose work panics is not used again.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub(super) fn with<R>(
        &self,
        model: &Model,
        work: impl FnOnce(&mut Workspace) -> R,
    ) -> Result<R, ModelError> {
        let mut workspace = match self.kept(|kept| kept.idle.pop()) {
            Some(workspace) => workspace,
            None => model.workspace()?,
        };
        let result = work(&mut workspace);
        self.kept(|kept| {
            if kept.idle.len() < kept.sessions {
                kept.idle.push(workspace);
            }
        });
        Ok(result)
    }

    fn kept<R>(&self, work: impl FnOnce(&mut Kept) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

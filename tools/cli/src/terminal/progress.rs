//! Progress of long work, on stderr and only when that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Resolution of a bar that shows a share.
const SHARE_STEPS: u64 = 1000;

/// A progress line that vanishes when the work ends; silent in a pipe.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line with a bar for `steps` steps of `what`.
    pub fn steps(what: &str, steps: usize) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), draw_target());
        bar.set_style(style("{prefix:.bold} {bar:30} {pos}/{len} {eta}"));
        bar.set_prefix(what.to_owned());
        Progress { bar }
    }

    /// A line with a spinner, for work whose length is not known.
    pub fn open_ended(what: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(None, draw_target());
        bar.set_style(style("{spinner} {prefix:.bold}"));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { bar }
    }

    /// A line with a bar for work that tells which share of it is done.
    pub fn share(what: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(SHARE_STEPS), draw_target());
        bar.set_style(style("{prefix:.bold} {bar:30} {percent} %"));
        bar.set_prefix(what.to_owned());
        Progress { bar }
    }

    /// One more step is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// This share of the work is done, 0 to 1.
    pub fn at(&self, share: f64) {
        self.bar.set_position((share * SHARE_STEPS as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn draw_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

//! Errors as text: what went wrong, why, and what to do about it.

use std::error::Error;
use std::fmt::Write;

/// Renders an error, the chain of its causes and, if there is one, a hint, ready for stderr.
///
/// A cause whose message its parent already ends with is left out, so that errors which include their
/// source in their own message do not read twice.
pub fn describe(error: &dyn Error, hint: Option<&str>) -> String {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !said.ends_with(&message) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  because: {}", message.replace('\n', "\n    "));
        }
        said = message;
        cause = error.source();
    }
    if let Some(hint) = hint {
        let _ = writeln!(text, "  hint: {}", hint.replace('\n', "\n    "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::describe;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot open model.niwaki")]
        Open(#[source] io::Error),
        #[error("cannot open it: {0}")]
        Repeats(#[source] io::Error),
    }

    #[test]
    fn the_causes_follow_the_error_and_the_hint_ends_it() {
        let error = Failed::Open(io::Error::other("disk on fire"));
        assert_eq!(
            describe(&error, Some("put it out")),
            "error: cannot open model.niwaki\n  because: disk on fire\n  hint: put it out\n"
        );
    }

    #[test]
    fn a_cause_that_the_message_already_tells_is_not_told_twice() {
        let error = Failed::Repeats(io::Error::other("disk on fire"));
        assert_eq!(
            describe(&error, None),
            "error: cannot open it: disk on fire\n"
        );
    }
}

//! What is said in, bytes of an event stream out.

use super::{DONE, Event};
use crate::error_object::ErrorBody;

/// A comment that says that the server is alive.
pub const KEEP_ALIVE: &str = ": alive\n\n";

/// An event as it goes into the stream.
pub fn encode(event: &Event) -> String {
    match event {
        Event::Chunk(chunk) => data(&serde_json::to_string(chunk)),
        Event::Done => format!("data: {DONE}\n\n"),
    }
}

/// An event that says that the answer failed. Nothing follows it.
pub fn encode_error(error: &ErrorBody) -> String {
    data(&serde_json::to_string(error))
}

/// JSON has no line breaks of its own, so an event is one line.
fn data(json: &serde_json::Result<String>) -> String {
    // Strings and integers always have a JSON form.
    let json = json.as_deref().unwrap_or_default();
    format!("data: {json}\n\n")
}

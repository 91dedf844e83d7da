//! Answers as streams of events (WHATWG HTML, 9.2).

mod decoder;
mod encoder;

use crate::chunk::Chunk;

pub use decoder::{EventDecoder, is_event_stream};
pub use encoder::{KEEP_ALIVE, encode, encode_error};

/// Ends the stream, as an event's data.
const DONE: &str = "[DONE]";

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer goes on.
    Chunk(Chunk),
    /// The answer is complete.
    Done,
}

//! OpenAI's chat completions as JSON and event streams, as the API reference has them and compatible servers follow
//! them: for a client that asks and for a server that answers. No I/O.
//!
//! What is read comes from strangers. Fields that are not known are passed over, `null` is as good as an absent field,
//! and every reading function says how many bytes it takes. Reading allocates in proportion to these bytes.
//!
//! What is printed for debugging and what errors say holds no text of users.

mod chunk;
mod completion;
mod error;
mod error_object;
mod events;
mod lenient;
mod message;
mod request;

pub use chunk::{Chunk, ChunkChoice, Delta};
pub use completion::{Choice, Completion, Usage};
pub use error::ReadError;
pub use error_object::{ErrorBody, ErrorObject};
pub use events::{Event, EventDecoder, KEEP_ALIVE, encode, encode_error, is_event_stream};
pub use message::{Message, Role};
pub use request::{CompletionRequest, StreamOptions};

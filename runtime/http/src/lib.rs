//! Carrying HTTP requests.
//!
//! [`Transport`] is what carries them: an app's own HTTP stack, or with the feature `https` [`HttpsTransport`], HTTP/1.1
//! over TLS of the library's own.

#[cfg(feature = "https")]
mod https;
mod transport;

#[cfg(feature = "https")]
pub use https::{HttpsTransport, InvalidRoots};
pub use transport::{Exchange, HttpHeader, HttpRequest, ResponseHead, Transport, TransportError};

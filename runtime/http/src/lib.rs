//! Carrying HTTP requests.
//!
//! [`Transport`] is what carries them: an app's own HTTP stack, or with the feature `https` `HttpsTransport`, HTTP/1.1
//! over TLS of the library's own. [`Response`] lets any of them work on a thread of its own, so that deadlines, bounds and
//! cancellation hold for all.

#[cfg(feature = "https")]
mod https;
mod request;
mod response;
mod transport;
mod url;

pub use http::Method;
#[cfg(feature = "https")]
pub use https::{HttpsTransport, InvalidRoots};
pub use request::{HttpHeader, HttpRequest};
pub use response::{Part, Response, ResponseError};
pub use transport::{Exchange, ResponseHead, Transport, TransportError};
pub use url::{InvalidUrl, Url};

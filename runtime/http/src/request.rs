//! What is sent.

use crate::url::Url;
use http::Method;
use std::fmt;
use std::time::Duration;

/// A request. Its `Debug` output holds neither header values nor the body, nor the query of the URL.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// What is to be done.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// Headers, among them the authorization. Those about the connection and the length of the body are the
    /// transport's.
    pub headers: Vec<HttpHeader>,
    /// The body, if there is one.
    pub body: Option<Vec<u8>>,
    /// How long finding the host, connecting and the TLS handshake may take together.
    pub connect_timeout: Duration,
    /// How long the response may stay silent. The client's own deadlines come first: it is for stacks that would
    /// give up sooner unless they are told.
    pub read_timeout: Duration,
}

/// A header of a request or a response.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpHeader {
    /// Its name, in any case.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl HttpRequest {
    /// A request without headers and body, with 10 s to connect and 60 s of silence.
    pub fn new(method: Method, url: Url) -> HttpRequest {
        HttpRequest {
            method,
            url,
            headers: Vec::new(),
            body: None,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
        }
    }

    /// With another header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> HttpRequest {
        self.headers.push(HttpHeader {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// Asks for a part only (RFC 9110, 14.2): from the byte with offset `first` to the end, or to the one with offset
    /// `last`, which is part of it. A server that does answers with 206 and says in `content-range` what it sends; one
    /// with 200 sends everything.
    #[must_use]
    pub fn with_range(self, first: u64, last: Option<u64>) -> HttpRequest {
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        self.with_header("range", format!("bytes={first}-{last}"))
    }

    /// With a body of this type.
    #[must_use]
    pub fn with_body(mut self, content_type: &str, body: Vec<u8>) -> HttpRequest {
        self.body = Some(body);
        self.with_header("content-type", content_type)
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("method", &self.method)
            .field("url", &self.url)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpHeader")
            .field(&self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> HttpRequest {
        let url = "https://example.org/v1?token=secret".parse().unwrap();
        HttpRequest::new(Method::POST, url)
    }

    #[test]
    fn a_request_prints_neither_its_key_nor_its_text() {
        let request = request()
            .with_header("authorization", "Bearer secret")
            .with_body("text/plain", b"a user's words".to_vec());
        let printed = format!("{request:?}");
        assert!(printed.contains("authorization"), "{printed}");
        assert!(!printed.contains("secret"), "{printed}");
        assert!(!printed.contains("words"), "{printed}");
    }

    #[test]
    fn a_range_goes_to_the_end_or_to_its_last_byte() {
        for (last, value) in [(None, "bytes=5-"), (Some(9), "bytes=5-9")] {
            let request = request().with_range(5, last);
            assert_eq!(request.headers[0].value, value);
        }
    }
}

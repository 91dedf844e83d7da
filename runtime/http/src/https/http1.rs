//! One request and its response in HTTP/1.1 (RFC 9112), with every part of the response bounded.

use super::connection::{Connection, failure};
use crate::request::{HttpHeader, HttpRequest};
use crate::transport::{ResponseHead, TransportError};
use http::Method;
use std::io::{self, BufRead, BufReader, Read, Write};

const BUFFER_BYTES: usize = 16 << 10;
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;
/// Most responses that announce the final one.
const MAX_INTERIM_RESPONSES: usize = 16;
/// Headers that say how a connection is used: they have to agree with what is sent.
const OWN_HEADERS: [&str; 5] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
];

/// The head of a request as it is sent.
///
/// # Errors
/// [`TransportError::InvalidRequest`] for what would make another request of it.
pub(super) fn head(request: &HttpRequest) -> Result<String, TransportError> {
    let invalid = |problem| Err(TransportError::InvalidRequest { problem });
    let (method, url) = (&request.method, &request.url);
    if *method == Method::CONNECT {
        return invalid("CONNECT asks for a tunnel, and there is nothing here to use it");
    }
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
        url.target(),
        url.authority()
    );
    for header in &request.headers {
        let name = header.name.as_str();
        if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return invalid(
                "a header about the connection or the length of the body is the transport's",
            );
        }
        if !is_token(name) || !is_value(&header.value) {
            return invalid("a header holds a character that no header can");
        }
        head += &format!("{name}: {}\r\n", header.value);
    }
    // Bodies are handed on as they come, so they have to come as they are.
    for (name, value) in [
        ("user-agent", concat!("niwaki/", env!("CARGO_PKG_VERSION"))),
        ("accept-encoding", "identity"),
    ] {
        if !request
            .headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case(name))
        {
            head += &format!("{name}: {value}\r\n");
        }
    }
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    let body_bytes = request.body.as_ref().map(Vec::len);
    if let Some(body_bytes) = body_bytes.or(expects_body.then_some(0)) {
        head += &format!("content-length: {body_bytes}\r\n");
    }
    head += "\r\n";
    Ok(head)
}

/// Sends a request.
pub(super) fn send(
    connection: &mut Connection,
    head: &str,
    body: &[u8],
) -> Result<(), TransportError> {
    connection
        .write_all(head.as_bytes())
        .and_then(|()| connection.write_all(body))
        .and_then(|()| connection.flush())
        .map_err(|error| failure(&error))
}

/// A name of a header (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token_byte)
}

fn is_value(value: &str) -> bool {
    value
        .bytes()
        .all(|byte| byte == b'\t' || !byte.is_ascii_control())
}

/// How the end of a body is known, and how much is left until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Over,
    Length(u64),
    /// Within a chunk.
    Chunk(u64),
    /// Before the line with the size of a chunk.
    ChunkSize,
    UntilClose,
}

/// The body of a response, read piece by piece.
pub(super) struct Body<R> {
    reader: BufReader<R>,
    framing: Framing,
}

/// Waits for the head of the response to a request with this method.
pub(super) fn receive<R: Read>(
    connection: R,
    method: &Method,
) -> Result<(ResponseHead, Body<R>), TransportError> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, connection);
    for _ in 0..=MAX_INTERIM_RESPONSES {
        let (head, framing) = read_head(&mut reader)?;
        if head.status >= 200 {
            // What a response to HEAD says of its body is meant for the one to GET.
            let framing = match *method == Method::HEAD {
                true => Framing::Over,
                false => framing,
            };
            return Ok((head, Body { reader, framing }));
        }
    }
    Err(TransportError::NotHttp)
}

impl<R: Read> Body<R> {
    /// What comes next; `None` at the end.
    pub(super) fn read(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        loop {
            let (next, bytes) = match self.framing {
                Framing::Over => return Ok(None),
                Framing::Length(0) => (Framing::Over, None),
                Framing::Length(left) => {
                    let bytes = self.take(left)?;
                    (Framing::Length(left - bytes.len() as u64), Some(bytes))
                }
                Framing::ChunkSize => match self.chunk_size()? {
                    0 => {
                        skip_trailers(&mut self.reader)?;
                        (Framing::Over, None)
                    }
                    size => (Framing::Chunk(size), None),
                },
                Framing::Chunk(0) => {
                    if !matches!(read_line(&mut self.reader, 2)?.as_slice(), b"\r\n" | b"\n") {
                        return Err(TransportError::NotHttp);
                    }
                    (Framing::ChunkSize, None)
                }
                Framing::Chunk(left) => {
                    let bytes = self.take(left)?;
                    (Framing::Chunk(left - bytes.len() as u64), Some(bytes))
                }
                // Whether that was the end of the answer, the answer says itself.
                Framing::UntilClose => match self.fill()? {
                    0 => (Framing::Over, None),
                    _ => (Framing::UntilClose, Some(self.take(u64::MAX)?)),
                },
            };
            self.framing = next;
            if bytes.is_some() {
                return Ok(bytes);
            }
        }
    }

    /// What has come, at most so many bytes and at least one.
    fn take(&mut self, most: u64) -> Result<Vec<u8>, TransportError> {
        let come = self.fill()?;
        if come == 0 {
            return Err(TransportError::Interrupted);
        }
        let count = usize::try_from(most).map_or(come, |most| most.min(come));
        let bytes = self.reader.buffer()[..count].to_vec();
        self.reader.consume(count);
        Ok(bytes)
    }

    /// Waits until the buffer holds something, and says how much; 0 at the end of the connection.
    fn fill(&mut self) -> Result<usize, TransportError> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(failure(&error)),
            }
        }
    }

    fn chunk_size(&mut self) -> Result<u64, TransportError> {
        let line = read_line(&mut self.reader, MAX_CHUNK_LINE_BYTES)?;
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) => Ok(size),
            _ => Err(TransportError::NotHttp),
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Result<(ResponseHead, Framing), TransportError> {
    let mut bytes = Vec::new();
    loop {
        let line = read_line(reader, MAX_HEAD_BYTES - bytes.len())?;
        let last = matches!(line.as_slice(), b"\r\n" | b"\n") && !bytes.is_empty();
        bytes.extend(line);
        if last {
            return parse_head(&bytes);
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<(ResponseHead, Framing), TransportError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let status = match (parsed.parse(bytes), parsed.code) {
        (Ok(httparse::Status::Complete(_)), Some(status)) => status,
        _ => return Err(TransportError::NotHttp),
    };
    let text = |value| std::str::from_utf8(value).map(str::trim).ok();
    let values = |name: &'static str| {
        let named = parsed
            .headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(move |header| text(header.value).unwrap_or_default())
    };
    let mut lengths = values("content-length");
    let framing = if matches!(status, 100..=199 | 204 | 304) {
        Framing::Over
    } else if let Some(coding) = values("transfer-encoding").next() {
        match coding.eq_ignore_ascii_case("chunked") {
            true => Framing::ChunkSize,
            false => return Err(TransportError::NotHttp),
        }
    } else if let Some(length) = lengths.next() {
        let number = length.parse().map_err(|_| TransportError::NotHttp)?;
        if lengths.any(|other| other != length) {
            return Err(TransportError::NotHttp);
        }
        Framing::Length(number)
    } else {
        Framing::UntilClose
    };
    let headers = parsed.headers.iter().filter_map(|header| {
        Some(HttpHeader {
            name: header.name.to_owned(),
            value: text(header.value)?.to_owned(),
        })
    });
    let headers = headers.collect();
    Ok((ResponseHead { status, headers }, framing))
}

/// A line with its end. One that is longer is no HTTP, one that breaks off an interruption.
fn read_line(reader: &mut impl BufRead, max_bytes: usize) -> Result<Vec<u8>, TransportError> {
    let mut line = Vec::new();
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    reader
        .take(limit)
        .read_until(b'\n', &mut line)
        .map_err(|error| failure(&error))?;
    match line.last() {
        Some(b'\n') => Ok(line),
        _ if line.len() >= max_bytes => Err(TransportError::NotHttp),
        _ => Err(TransportError::Interrupted),
    }
}

fn skip_trailers(reader: &mut impl BufRead) -> Result<(), TransportError> {
    let mut left = MAX_HEAD_BYTES;
    loop {
        let line = read_line(reader, left)?;
        if matches!(line.as_slice(), b"\r\n" | b"\n") {
            return Ok(());
        }
        left -= line.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Status and body, or why not.
    fn read(bytes: &[u8]) -> (Option<u16>, Vec<u8>, Result<(), TransportError>) {
        read_after(&Method::GET, bytes)
    }

    fn read_after(
        method: &Method,
        bytes: &[u8],
    ) -> (Option<u16>, Vec<u8>, Result<(), TransportError>) {
        let (head, mut body) = match receive(bytes, method) {
            Ok(received) => received,
            Err(error) => return (None, Vec::new(), Err(error)),
        };
        let mut read = Vec::new();
        let end = loop {
            match body.read() {
                Ok(Some(bytes)) => read.extend(bytes),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        (Some(head.status), read, end)
    }

    #[test]
    fn bodies_end_as_their_framing_says() {
        for (rest, body) in [
            ("content-length: 3\r\n\r\nabcdef", "abc"),
            ("content-length: 3\r\ncontent-length: 3\r\n\r\nabc", "abc"),
            (
                "Transfer-Encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nt: 1\r\n\r\n",
                "abc",
            ),
            ("\r\nabc", "abc"),
        ] {
            let response = format!("HTTP/1.1 200 OK\r\n{rest}");
            assert_eq!(
                read(response.as_bytes()),
                (Some(200), body.into(), Ok(())),
                "{response:?}"
            );
        }
        for status in ["204 No Content", "304 Not Modified"] {
            let response = format!("HTTP/1.1 {status}\r\ncontent-length: 3\r\n\r\nabc");
            assert_eq!(read(response.as_bytes()).1, b"", "{status}");
        }
        let measured = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(read(measured), (Some(206), b"abc".to_vec(), Ok(())));
        assert_eq!(
            read_after(&Method::HEAD, measured),
            (Some(206), Vec::new(), Ok(()))
        );
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(read(interim), (Some(204), Vec::new(), Ok(())));
    }

    #[test]
    fn what_contradicts_itself_is_no_http() {
        for rest in [
            "content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            "content-length: -1\r\n\r\n",
            "content-length: 99999999999999999999999\r\n\r\n",
            "transfer-encoding: gzip\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\nxyz\r\n",
            "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            "transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
            "no colon\r\n\r\n",
        ] {
            let response = format!("HTTP/1.1 200 OK\r\n{rest}");
            assert_eq!(
                read(response.as_bytes()).2,
                Err(TransportError::NotHttp),
                "{response:?}"
            );
        }
    }

    #[test]
    fn responses_that_only_announce_another_one_come_to_an_end() {
        let announcing = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        assert_eq!(read(announcing.as_bytes()).2, Err(TransportError::NotHttp));
    }

    fn request(method: Method) -> HttpRequest {
        HttpRequest::new(method, "https://example.com:8443/a?b=c".parse().unwrap())
    }

    #[test]
    fn a_request_begins_with_what_it_is_for_and_ends_with_its_length() {
        assert_eq!(
            head(&request(Method::GET).with_range(5, None)).unwrap(),
            concat!(
                "GET /a?b=c HTTP/1.1\r\nhost: example.com:8443\r\nconnection: close\r\nrange: bytes=5-\r\n\
                 user-agent: niwaki/",
                env!("CARGO_PKG_VERSION"),
                "\r\naccept-encoding: identity\r\n\r\n"
            )
        );
        let put = head(&request(Method::PUT).with_header("User-Agent", "app")).unwrap();
        assert!(put.ends_with("content-length: 0\r\n\r\n"), "{put}");
        assert!(!put.contains("niwaki/"), "{put}");
        let with_body = request(Method::DELETE).with_body("text/plain", vec![1, 2]);
        assert!(head(&with_body).unwrap().contains("content-length: 2\r\n"));
        let own: Method = "PURGE".parse().unwrap();
        assert!(head(&request(own)).unwrap().starts_with("PURGE /a"));
    }

    #[test]
    fn no_header_makes_another_request_of_it() {
        for (name, value) in [
            ("x", "1\r\ny: 2"),
            ("x", "1\ny: 2"),
            ("x", "1\0"),
            ("x\r\ny", "1"),
            ("x y", "1"),
            ("x:", "1"),
            ("", "1"),
            ("Host", "evil.example"),
            ("Content-Length", "0"),
            ("transfer-encoding", "chunked"),
            ("connection", "keep-alive"),
        ] {
            let request = request(Method::GET).with_header(name, value);
            assert!(
                matches!(head(&request), Err(TransportError::InvalidRequest { .. })),
                "{name:?}: {value:?}"
            );
        }
        assert!(head(&request(Method::CONNECT)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", bytes.as_slice()].concat());
        }
    }
}

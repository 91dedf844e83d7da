//! One request and its response in HTTP/1.1 (RFC 9112), with every part of the response bounded.

use super::connection::{Connection, failure};
use crate::route::transport::{HttpHeader, HttpRequest, ResponseSink, TransportError};
use http::Uri;
use std::io::{self, BufRead, BufReader, Read, Write};

const BUFFER_BYTES: usize = 16 << 10;
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;

/// Sends the request.
pub(super) fn send(
    connection: &mut Connection,
    uri: &Uri,
    request: &HttpRequest,
) -> Result<(), TransportError> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut head = format!(
        "POST {} HTTP/1.1\r\nhost: {host}\r\nuser-agent: niwaki/{}\r\ncontent-length: {}\r\nconnection: close\r\n",
        uri.path(),
        env!("CARGO_PKG_VERSION"),
        request.body.len()
    );
    for header in &request.headers {
        let line = format!("{}: {}", header.name, header.value);
        if line.contains(['\r', '\n', '\0']) {
            return Err(TransportError::NotHttp);
        }
        head += &line;
        head += "\r\n";
    }
    head += "\r\n";
    connection
        .write_all(head.as_bytes())
        .and_then(|()| connection.write_all(&request.body))
        .and_then(|()| connection.flush())
        .map_err(|error| failure(&error))
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

struct Head {
    status: u16,
    headers: Vec<HttpHeader>,
    framing: Framing,
}

/// Hands the response on until it ends or nobody wants it.
pub(super) fn receive(
    connection: impl Read,
    response: &ResponseSink,
) -> Result<(), TransportError> {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, connection);
    let head = loop {
        let head = read_head(&mut reader)?;
        // Interim responses announce the final one.
        if head.status >= 200 {
            break head;
        }
    };
    if !response.head(head.status, head.headers) {
        return Ok(());
    }
    let wanted = match head.framing {
        Framing::None => true,
        Framing::Length(length) => pass_on(&mut reader, length, response)?,
        Framing::Chunked => pass_chunks_on(&mut reader, response)?,
        Framing::UntilClose => pass_rest_on(&mut reader, response)?,
    };
    if wanted {
        response.end();
    }
    Ok(())
}

fn read_head(reader: &mut impl BufRead) -> Result<Head, TransportError> {
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

fn parse_head(bytes: &[u8]) -> Result<Head, TransportError> {
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
        Framing::None
    } else if let Some(coding) = values("transfer-encoding").next() {
        match coding.eq_ignore_ascii_case("chunked") {
            true => Framing::Chunked,
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
    Ok(Head {
        status,
        framing,
        headers: parsed
            .headers
            .iter()
            .filter_map(|header| {
                Some(HttpHeader {
                    name: header.name.to_owned(),
                    value: text(header.value)?.to_owned(),
                })
            })
            .collect(),
    })
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

/// Passes so many bytes on; whether more are wanted.
fn pass_on(
    reader: &mut impl BufRead,
    length: u64,
    response: &ResponseSink,
) -> Result<bool, TransportError> {
    let mut left = length;
    while left > 0 {
        let bytes = fill(reader)?;
        if bytes.is_empty() {
            return Err(TransportError::Interrupted);
        }
        let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        if !response.data(&bytes[..count]) {
            return Ok(false);
        }
        reader.consume(count);
        left -= count as u64;
    }
    Ok(true)
}

fn pass_chunks_on(
    reader: &mut impl BufRead,
    response: &ResponseSink,
) -> Result<bool, TransportError> {
    loop {
        let line = read_line(reader, MAX_CHUNK_LINE_BYTES)?;
        let size = match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) => size,
            _ => return Err(TransportError::NotHttp),
        };
        if size == 0 {
            return skip_trailers(reader).map(|()| true);
        }
        if !pass_on(reader, size, response)? {
            return Ok(false);
        }
        if !matches!(read_line(reader, 2)?.as_slice(), b"\r\n" | b"\n") {
            return Err(TransportError::NotHttp);
        }
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

/// Passes on until the connection ends. Whether that was the end of the answer, the answer says itself.
fn pass_rest_on(
    reader: &mut impl BufRead,
    response: &ResponseSink,
) -> Result<bool, TransportError> {
    loop {
        let bytes = fill(reader)?;
        let count = bytes.len();
        if count == 0 {
            return Ok(true);
        }
        if !response.data(bytes) {
            return Ok(false);
        }
        reader.consume(count);
    }
}

fn fill(reader: &mut impl BufRead) -> Result<&[u8], TransportError> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(failure(&error)),
        }
    }
    // It is filled already.
    reader.fill_buf().map_err(|error| failure(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::transport::ResponseEvent;
    use proptest::prelude::*;

    /// Status and body, or why not.
    fn read(bytes: &[u8]) -> (Option<u16>, Vec<u8>, Result<(), TransportError>) {
        let (sink, events) = ResponseSink::new(1 << 20);
        let result = receive(bytes, &sink);
        drop(sink);
        let (mut status, mut body) = (None, Vec::new());
        for event in events {
            match event {
                ResponseEvent::Head { status: code, .. } => status = Some(code),
                ResponseEvent::Data(data) => body.extend(data),
                _ => (),
            }
        }
        (status, body, result)
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", bytes.as_slice()].concat());
        }
    }
}

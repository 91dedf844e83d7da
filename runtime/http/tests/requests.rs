//! The library's own HTTP/1.1 against a server: every method, ranges, downloads that break off.
#![allow(clippy::unwrap_used)]

mod server;

use niwaki_http::{
    HttpRequest, HttpsTransport, Method, Part, Response, ResponseError, ResponseHead,
    TransportError,
};
use server::{Certificate, Connection, HUNG, Server, dead_port, status};
use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::Instant;

const FILE: &str = "0123456789abcdefghij";

type Answer = Result<(ResponseHead, Vec<u8>), ResponseError<Infallible>>;

fn request(method: Method, server: &Server) -> HttpRequest {
    HttpRequest::new(
        method,
        format!("{}/file?v=1", server.url()).parse().unwrap(),
    )
}

fn start(transport: HttpsTransport, request: HttpRequest, max_bytes: u64) -> Response<Infallible> {
    Response::to(Arc::new(transport), max_bytes, move || Ok(request))
}

/// Everything up to the end, or to where it breaks off.
fn read(
    response: &Response<Infallible>,
) -> (
    Option<ResponseHead>,
    Vec<u8>,
    Option<ResponseError<Infallible>>,
) {
    let (mut head, mut body) = (None, Vec::new());
    let deadline = Instant::now() + HUNG;
    loop {
        match response.next(Some(deadline)) {
            Ok(Part::Head(come)) => head = Some(come),
            Ok(Part::Data(data)) => body.extend(data),
            Ok(Part::End) => return (head, body, None),
            Err(error) => return (head, body, Some(error)),
        }
    }
}

fn ask(request: HttpRequest) -> Answer {
    match read(&start(HttpsTransport::new(), request, 1000)) {
        (_, _, Some(error)) => Err(error),
        (head, body, None) => Ok((head.unwrap(), body)),
    }
}

fn method(connection: &Connection) -> &str {
    connection.request.split(' ').next().unwrap()
}

/// First and last byte that the request asks for.
fn asked_range(connection: &Connection) -> Option<(usize, usize)> {
    let range = connection
        .request
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="))?;
    let (first, last) = range.split_once('-').unwrap();
    let last = last.parse().unwrap_or(FILE.len() - 1);
    Some((first.parse().unwrap(), last.min(FILE.len() - 1)))
}

/// Serves the file as servers of models do.
fn serve_file(connection: &mut Connection) {
    let (line, range, part) = match asked_range(connection) {
        Some((first, _)) if first >= FILE.len() => (
            "416 Range Not Satisfiable",
            format!("content-range: bytes */{}\r\n", FILE.len()),
            "",
        ),
        Some((first, last)) => (
            "206 Partial Content",
            format!("content-range: bytes {first}-{last}/{}\r\n", FILE.len()),
            &FILE[first..=last],
        ),
        None => ("200 OK", String::new(), FILE),
    };
    let response = status(line, &range, part);
    match method(connection) {
        // The length of what a GET would have sent, and nothing of it.
        "HEAD" => connection.send(response.split_inclusive("\r\n\r\n").next().unwrap()),
        _ => connection.send(response),
    }
}

#[test]
fn get_gives_the_body_and_head_only_what_is_said_of_it() {
    let server = Server::serve(|connection| {
        serve_file(connection);
        // A body that is waited for does not end with the connection.
        connection.wait_for_close();
    });
    let (head, body) = ask(request(Method::GET, &server)).unwrap();
    assert_eq!((head.status, body), (200, FILE.into()));
    let (head, body) = ask(request(Method::HEAD, &server)).unwrap();
    assert_eq!((head.status, body), (200, Vec::new()));
    assert_eq!(head.header("Content-Length"), Some("20"));
    let requests = server.requests();
    assert!(
        requests[0].starts_with("GET /file?v=1 HTTP/1.1\r\n"),
        "{requests:?}"
    );
    assert!(!requests[0].contains("content-length"), "{requests:?}");
}

#[test]
fn ranges_are_asked_for_and_answered_in_the_servers_words() {
    let server = Server::serve(serve_file);
    let ask = |first, last| {
        let range = request(Method::GET, &server).with_range(first, last);
        let (head, body) = ask(range).unwrap();
        let range = head.header("content-range").unwrap().to_owned();
        (head.status, range, String::from_utf8(body).unwrap())
    };
    let part = |range: &str, body: &str| (206, range.to_owned(), body.to_owned());
    assert_eq!(ask(15, None), part("bytes 15-19/20", "fghij"));
    assert_eq!(ask(0, Some(3)), part("bytes 0-3/20", "0123"));
    assert_eq!(ask(18, Some(99)), part("bytes 18-19/20", "ij"));
    assert_eq!(ask(20, None), (416, "bytes */20".into(), String::new()));
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let server = Server::serve(|connection| match connection.number {
        0 => {
            let whole = status("200 OK", "", FILE);
            connection.send(&whole[..whole.len() - 12]);
        }
        _ => serve_file(connection),
    });
    let first = start(HttpsTransport::new(), request(Method::GET, &server), 1000);
    let (_, mut file, error) = read(&first);
    assert_eq!(
        error,
        Some(ResponseError::Transport(TransportError::Interrupted))
    );
    assert!(first.next(None).is_err());
    let rest = request(Method::GET, &server).with_range(file.len() as u64, None);
    let (head, body) = ask(rest).unwrap();
    assert_eq!(head.status, 206);
    file.extend(body);
    assert_eq!(file, FILE.as_bytes());
}

#[test]
fn bodies_are_sent_with_every_method_that_has_one() {
    let server = Server::serve(|connection| {
        let (head, body) = connection.request.split_once("\r\n\r\n").unwrap();
        let echo = format!("{} {body}", head.split(' ').next().unwrap());
        connection.send(status("201 Created", "", &echo));
    });
    for name in ["POST", "PUT", "PATCH", "DELETE", "REPORT"] {
        let method = Method::from_bytes(name.as_bytes()).unwrap();
        let body = "grün".as_bytes().to_vec();
        let asked = request(method.clone(), &server).with_body("text/plain", body);
        let (head, body) = ask(asked).unwrap();
        assert_eq!(
            (head.status, String::from_utf8(body).unwrap()),
            (201, format!("{name} grün"))
        );
        let (_, body) = ask(request(method, &server)).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), format!("{name} "));
    }
    let sent = server.requests().concat();
    assert!(sent.contains("content-type: text/plain\r\n"), "{sent}");
}

#[test]
fn responses_that_never_have_a_body_end_at_their_head() {
    let server = Server::serve(|connection| {
        // Lengths are of what GET would have given.
        connection.send("HTTP/1.1 304 Not Modified\r\ncontent-length: 20\r\netag: \"a\"\r\n\r\n");
        connection.wait_for_close();
    });
    let asked = request(Method::GET, &server).with_header("if-none-match", "\"a\"");
    let (head, body) = ask(asked).unwrap();
    assert_eq!((head.status, body), (304, Vec::new()));
}

#[test]
fn the_same_goes_over_tls_with_a_root_that_is_trusted() {
    let certificate = Certificate::for_localhost();
    let server = Server::serve_tls(&certificate, serve_file);
    let url = format!("{}/file", server.localhost_url()).parse().unwrap();
    let trusting = HttpsTransport::with_roots(certificate.pem.as_bytes()).unwrap();
    let asked = HttpRequest::new(Method::GET, url).with_range(18, None);
    let (head, body, error) = read(&start(trusting, asked, 1000));
    assert_eq!(
        (head.unwrap().status, body, error),
        (206, b"ij".to_vec(), None)
    );
}

#[test]
fn a_body_over_its_bound_and_a_server_that_is_not_there_are_errors() {
    let server = Server::serve(serve_file);
    let response = start(HttpsTransport::new(), request(Method::GET, &server), 19);
    assert_eq!(
        read(&response).2,
        Some(ResponseError::TooLarge { limit_bytes: 19 })
    );
    let url = format!("http://127.0.0.1:{}/", dead_port())
        .parse()
        .unwrap();
    assert_eq!(
        ask(HttpRequest::new(Method::GET, url)),
        Err(ResponseError::Transport(TransportError::Refused))
    );
}

#[test]
fn whoever_waits_is_woken_by_the_canceller_and_the_connection_closed() {
    let (arrived, wait) = mpsc::channel();
    let (closed, wait_closed) = mpsc::channel();
    let server = Server::serve(move |connection| {
        arrived.send(()).unwrap();
        closed.send(connection.wait_for_close()).unwrap();
    });
    let response = start(HttpsTransport::new(), request(Method::GET, &server), 1000);
    let cancel = response.canceller();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            wait.recv_timeout(HUNG).unwrap();
            cancel();
        });
        assert_eq!(response.next(None), Err(ResponseError::Cancelled));
    });
    drop(response);
    assert!(wait_closed.recv_timeout(HUNG).unwrap());
}

#[test]
fn a_response_that_does_not_come_is_late() {
    let server = Server::serve(|connection| assert!(connection.wait_for_close()));
    let response = start(HttpsTransport::new(), request(Method::GET, &server), 1000);
    assert_eq!(
        response.next(Some(Instant::now())),
        Err(ResponseError::Late)
    );
}

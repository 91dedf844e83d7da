//! A server that does what a test says, down to the byte: good ones and hostile ones.
#![allow(dead_code, unreachable_pub)]

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Nothing here takes longer than this; a client that waits longer has hung.
pub const HUNG: Duration = Duration::from_secs(30);

/// A listening server. Dropped, it stops.
pub struct Server {
    pub port: u16,
    scheme: &'static str,
    /// Connections that came.
    accepted: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A certificate for `localhost` that nobody vouches for.
pub struct Certificate {
    pub pem: String,
    config: Arc<ServerConfig>,
}

/// A connection at the server's side, its request read.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Its number, from 0.
    pub number: usize,
    /// Head and body of the request.
    pub request: String,
}

trait Stream: Read + Write + Send {
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

impl Certificate {
    pub fn for_localhost() -> Certificate {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Certificate {
            pem: made.cert.pem(),
            config: Arc::new(config),
        }
    }
}

impl Server {
    /// Serves every connection with `script`, on a thread of its own.
    pub fn serve(script: impl Fn(&mut Connection) + Send + Sync + 'static) -> Server {
        Server::start(None, script)
    }

    /// The same over TLS.
    pub fn serve_tls(
        certificate: &Certificate,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Server {
        Server::start(Some(certificate.config.clone()), script)
    }

    /// Answers every request with these bytes.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Server {
        let bytes = bytes.into();
        Server::serve(move |connection| connection.send(&bytes))
    }

    fn start(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Connection) + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepted = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let script = Arc::new(script);
        let thread = thread::spawn({
            let (accepted, requests, stopped) =
                (accepted.clone(), requests.clone(), stopped.clone());
            move || {
                for socket in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let number = accepted.fetch_add(1, Ordering::SeqCst);
                    let (tls, requests, script) = (tls.clone(), requests.clone(), script.clone());
                    thread::spawn(move || {
                        let Ok(mut connection) = Connection::new(socket.unwrap(), tls, number)
                        else {
                            return;
                        };
                        if let Ok(request) = connection.read_request() {
                            connection.request = request.clone();
                            requests.lock().unwrap().push(request);
                            script(&mut connection);
                        }
                    });
                }
            }
        });
        Server {
            port,
            scheme,
            accepted,
            requests,
            stopped,
            thread: Some(thread),
        }
    }

    /// The base URL, by address.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The base URL, by name.
    pub fn localhost_url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.port)
    }

    /// How many connections came.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Heads and bodies of the requests, as they came.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Connection {
    fn new(
        socket: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        number: usize,
    ) -> io::Result<Connection> {
        socket.set_read_timeout(Some(HUNG))?;
        socket.set_write_timeout(Some(HUNG))?;
        socket.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(socket),
            Some(config) => {
                let connection = ServerConnection::new(config).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(connection, socket))
            }
        };
        Ok(Connection {
            stream,
            number,
            request: String::new(),
        })
    }

    fn read_request(&mut self) -> io::Result<String> {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&request).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(0, |length| length.trim().parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        request.extend(body);
        Ok(String::from_utf8(request).unwrap())
    }

    /// Sends bytes. A client that is gone is no failure.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self
            .stream
            .write_all(bytes.as_ref())
            .and_then(|()| self.stream.flush());
    }

    /// Sends, and says whether the client still takes it.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream
            .write_all(bytes.as_ref())
            .and_then(|()| self.stream.flush())
            .is_ok()
    }

    /// Waits until the client closes the connection; `false` when it never does.
    pub fn wait_for_close(&mut self) -> bool {
        let mut rest = [0; 256];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => (),
                Err(error) => {
                    return !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    );
                }
            }
        }
    }

    /// Makes the connection end with a reset instead of a goodbye when the script is done.
    pub fn end_with_reset(&mut self) {
        let socket = socket2::SockRef::from(self.stream.socket());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// An address where nothing listens.
pub fn dead_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A response with a status and a JSON body.
pub fn status(line: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

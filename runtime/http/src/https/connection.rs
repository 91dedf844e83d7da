//! A connection that another thread can close.

use crate::transport::TransportError;
use crate::url::Url;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The socket of a connection, once there is one, in the hands of whoever may close it.
#[derive(Default)]
pub(super) struct Socket(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Connecting,
    Open(TcpStream),
    Closed,
}

impl Socket {
    /// Closes the connection, which wakes a thread that reads from it. One that is not there yet will not be.
    pub(super) fn close(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(socket) = &*state {
            // It fails only for a connection that is closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
        *state = State::Closed;
    }

    fn open(&self, socket: &TcpStream) -> Result<(), TransportError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Closed) {
            return Err(TransportError::Interrupted);
        }
        *state = State::Open(socket.try_clone().map_err(|error| failure(&error))?);
        Ok(())
    }
}

/// A stream of bytes to an endpoint.
pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    /// Resolves, connects and shakes hands within `timeout`.
    pub(super) fn open(
        url: &Url,
        tls: Arc<ClientConfig>,
        timeout: Duration,
        socket: &Socket,
    ) -> Result<Connection, TransportError> {
        let end = Instant::now().checked_add(timeout);
        let host = url.host();
        let mut addresses = resolve(host.to_owned(), url.port(), left(end)?)?;
        if host == "localhost" {
            // Whatever a hosts file or a name server says.
            addresses.retain(|address| address.ip().is_loopback());
        }
        let stream = connect(&addresses, end)?;
        socket.open(&stream)?;
        let limits = |limit| {
            stream
                .set_nodelay(true)
                .and_then(|()| stream.set_read_timeout(limit))
                .and_then(|()| stream.set_write_timeout(limit))
                .map_err(|error| failure(&error))
        };
        if !url.is_secure() {
            limits(None)?;
            return Ok(Connection::Plain(stream));
        }
        limits(Some(left(end)?))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TransportError::Dns)?;
        let mut session = ClientConnection::new(tls, name).map_err(|error| untrusted(&error))?;
        while session.is_handshaking() {
            session
                .complete_io(&mut &stream)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        TransportError::ConnectTimeout
                    }
                    _ => failure(&error),
                })?;
        }
        // From here on the client's deadlines hold: it closes the socket.
        limits(None)?;
        Ok(Connection::Tls(Box::new(StreamOwned::new(session, stream))))
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.read(buffer),
            Connection::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Plain(stream) => stream.write(buffer),
            Connection::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Connection::Plain(stream) => stream.flush(),
            Connection::Tls(stream) => stream.flush(),
        }
    }
}

/// Longer than any connection takes.
const LONG: Duration = Duration::from_secs(3600);

/// Time left; `None` is an end that no clock can tell.
fn left(end: Option<Instant>) -> Result<Duration, TransportError> {
    match end {
        Some(end) => end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
            .ok_or(TransportError::ConnectTimeout),
        None => Ok(LONG),
    }
}

/// Asks the system, which can take any time it likes: on a thread that is left behind when it takes too long.
fn resolve(host: String, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>, TransportError> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        .name("niwaki-resolve".into())
        .spawn(move || {
            let addresses = (host.as_str(), port).to_socket_addrs();
            // Nobody waits any more when this fails.
            let _ = sender.send(addresses.map(Iterator::collect));
        })
        .map_err(|_| TransportError::Dns)?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Err(TransportError::Dns),
        Err(RecvTimeoutError::Timeout) => Err(TransportError::ConnectTimeout),
    }
}

/// Tries one address after the other, each with its share of the time.
fn connect(addresses: &[SocketAddr], end: Option<Instant>) -> Result<TcpStream, TransportError> {
    let mut error = TransportError::Dns;
    for (index, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(address, left(end)? / others) {
            Ok(stream) => return Ok(stream),
            Err(refused) => {
                error = match refused.kind() {
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                        TransportError::ConnectTimeout
                    }
                    _ => failure(&refused),
                }
            }
        }
    }
    Err(error)
}

/// What a failure of a socket means.
pub(super) fn failure(error: &io::Error) -> TransportError {
    let tls = error
        .get_ref()
        .and_then(|source| source.downcast_ref::<rustls::Error>());
    if let Some(error) = tls {
        return untrusted(error);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => TransportError::Refused,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::PermissionDenied => TransportError::Unreachable,
        _ => TransportError::Interrupted,
    }
}

fn untrusted(error: &rustls::Error) -> TransportError {
    TransportError::Tls {
        reason: error.to_string(),
    }
}

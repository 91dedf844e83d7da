//! The library's own transport: HTTP/1.1 over rustls.
//!
//! Certificates are checked against Mozilla's roots, which are compiled in, so it works the same on every
//! platform and needs no set-up. Where the platform's own trust store matters (roots a company installs on its
//! devices), give the client a [`Transport`] over the platform's HTTP stack, or the roots themselves.

mod connection;
mod http1;

use crate::request::HttpRequest;
use crate::transport::{Exchange, ResponseHead, Transport, TransportError};
use connection::{Connection, Socket};
use http1::Body;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sends requests over TCP and TLS, each on a connection of its own. It uses no proxy, follows no
/// redirect and logs nothing.
#[derive(Clone)]
pub struct HttpsTransport {
    tls: Arc<ClientConfig>,
}

/// The given roots hold no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no certificate in PEM form was found; give a file that holds -----BEGIN CERTIFICATE-----")]
pub struct InvalidRoots;

impl Default for HttpsTransport {
    fn default() -> Self {
        HttpsTransport::trusting(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        })
    }
}

impl HttpsTransport {
    /// Trusts Mozilla's roots.
    pub fn new() -> HttpsTransport {
        HttpsTransport::default()
    }

    /// Trusts only the certificates in `pem`: an endpoint's own issuer.
    ///
    /// # Errors
    /// [`InvalidRoots`] when there is none.
    pub fn with_roots(pem: &[u8]) -> Result<HttpsTransport, InvalidRoots> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
        match roots.is_empty() {
            true => Err(InvalidRoots),
            false => Ok(HttpsTransport::trusting(roots)),
        }
    }

    fn trusting(roots: RootCertStore) -> HttpsTransport {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // The provider has cipher suites for both versions, so this always finds some.
        #[expect(clippy::expect_used)]
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        HttpsTransport { tls: Arc::new(tls) }
    }
}

impl fmt::Debug for HttpsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsTransport").finish_non_exhaustive()
    }
}

impl Transport for HttpsTransport {
    fn exchange(&self, request: HttpRequest) -> Result<Arc<dyn Exchange>, TransportError> {
        Ok(Arc::new(HttpsExchange {
            head: http1::head(&request)?,
            tls: self.tls.clone(),
            request,
            socket: Socket::default(),
            response: Mutex::default(),
        }))
    }
}

struct HttpsExchange {
    /// Of the request, as it is sent.
    head: String,
    tls: Arc<ClientConfig>,
    request: HttpRequest,
    socket: Socket,
    response: Mutex<Option<Body<Connection>>>,
}

impl Exchange for HttpsExchange {
    fn send(&self) -> Result<ResponseHead, TransportError> {
        let request = &self.request;
        let mut connection = Connection::open(
            &request.url,
            self.tls.clone(),
            request.connect_timeout,
            &self.socket,
        )?;
        let body = request.body.as_deref().unwrap_or_default();
        http1::send(&mut connection, &self.head, body)?;
        let (head, body) = http1::receive(connection, &request.method)?;
        *self.response() = Some(body);
        Ok(head)
    }

    fn read(&self) -> Result<Option<Vec<u8>>, TransportError> {
        match &mut *self.response() {
            Some(body) => body.read(),
            None => Ok(None),
        }
    }

    fn cancel(&self) {
        self.socket.close();
    }
}

impl HttpsExchange {
    /// Only the thread that reads takes it.
    fn response(&self) -> MutexGuard<'_, Option<Body<Connection>>> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_without_a_certificate_are_refused() {
        assert_eq!(
            HttpsTransport::with_roots(b"not a certificate").err(),
            Some(InvalidRoots)
        );
    }
}

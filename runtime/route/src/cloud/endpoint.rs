//! Where the requests go.

use super::error::CloudError;
use niwaki_http::{InvalidUrl, Url};

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointProblem {
    /// It is no URL that a request can go to.
    #[error(transparent)]
    Url(#[from] InvalidUrl),
    /// What follows a `?` would end up within the path.
    #[error("it has a query after its path")]
    Query,
}

/// A checked endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Of `POST /v1/chat/completions`.
    pub(super) url: Url,
    /// Host and, if it was given, port.
    pub(super) host: String,
}

impl Endpoint {
    /// Checks a base URL, with or without `/v1` at its end.
    ///
    /// # Errors
    /// [`CloudError::InvalidEndpoint`] and [`CloudError::PlaintextForbidden`].
    pub(super) fn parse(base: &str, allow_plaintext: bool) -> Result<Endpoint, CloudError> {
        let invalid = |problem| CloudError::InvalidEndpoint { problem };
        let url: Url = base
            .parse()
            .map_err(|error| invalid(EndpointProblem::Url(error)))?;
        if url.query().is_some() {
            return Err(invalid(EndpointProblem::Query));
        }
        if !url.is_secure() && !url.is_loopback() && !allow_plaintext {
            return Err(CloudError::PlaintextForbidden {
                host: url.host().to_owned(),
            });
        }
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        let url = url
            .with_target(&format!("{path}/v1/chat/completions"))
            .map_err(|error| invalid(EndpointProblem::Url(error)))?;
        Ok(Endpoint {
            host: url.authority(),
            url,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_becomes_the_completions_url() {
        for (base, url) in [
            (
                "https://api.example.com",
                "https://api.example.com/v1/chat/completions",
            ),
            (
                "https://api.example.com/",
                "https://api.example.com/v1/chat/completions",
            ),
            (
                "https://api.example.com/v1/",
                "https://api.example.com/v1/chat/completions",
            ),
            (
                "https://example.com/proxy/api/v1",
                "https://example.com/proxy/api/v1/chat/completions",
            ),
            (
                "http://127.0.0.1:8080",
                "http://127.0.0.1:8080/v1/chat/completions",
            ),
            ("http://[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
            (
                "http://localhost:1",
                "http://localhost:1/v1/chat/completions",
            ),
        ] {
            assert_eq!(
                Endpoint::parse(base, false).map(|endpoint| endpoint.url.to_string()),
                Ok(url.to_owned())
            );
        }
    }

    #[test]
    fn plaintext_stays_on_the_machine() {
        for host in [
            "api.example.com",
            "10.0.0.1",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "0.0.0.0",
            "2130706433",
            "[::ffff:10.0.0.1]",
        ] {
            let base = format!("http://{host}");
            let host = host.trim_matches(['[', ']']);
            assert_eq!(
                Endpoint::parse(&base, false),
                Err(CloudError::PlaintextForbidden {
                    host: host.to_owned()
                })
            );
            assert!(Endpoint::parse(&base, true).is_ok(), "{base}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_reason() {
        for (base, problem) in [
            ("", InvalidUrl::Syntax.into()),
            ("api.example.com", InvalidUrl::Scheme.into()),
            ("/v1", InvalidUrl::NoHost.into()),
            ("ftp://example.com", InvalidUrl::Scheme.into()),
            (
                "https://user:word@example.com",
                InvalidUrl::Credentials.into(),
            ),
            ("https://example.com/?key=1", EndpointProblem::Query),
            ("https://example.com:", InvalidUrl::Port.into()),
            ("https://example.com:0/v1", InvalidUrl::Port.into()),
            ("https://example.com:http/v1", InvalidUrl::Port.into()),
            ("https://example.com:99999", InvalidUrl::Port.into()),
            ("http://127.0.0.1:65536", InvalidUrl::Port.into()),
        ] {
            assert_eq!(
                Endpoint::parse(base, true),
                Err(CloudError::InvalidEndpoint { problem }),
                "{base}"
            );
        }
    }
}

//! Where the requests go.

use super::error::CloudError;
use http::Uri;
use std::net::IpAddr;

/// A checked endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Of `POST /v1/chat/completions`.
    pub(super) url: String,
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
        let uri: Uri = base.parse().map_err(|_| invalid("it is not a URL"))?;
        let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid(
                "a user name or password in it would end up in logs",
            ));
        }
        if authority.host().is_empty() {
            return Err(invalid("it names no host"));
        }
        if uri.query().is_some() {
            return Err(invalid("it has a query after its path"));
        }
        let scheme = match uri.scheme_str() {
            Some("https") => "https",
            Some("http") if allow_plaintext || is_loopback(authority.host()) => "http",
            Some("http") => {
                return Err(CloudError::PlaintextForbidden {
                    host: authority.host().to_owned(),
                });
            }
            _ => return Err(invalid("it begins neither with https:// nor with http://")),
        };
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        Ok(Endpoint {
            url: format!("{scheme}://{authority}{path}/v1/chat/completions"),
            host: authority.as_str().to_owned(),
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    // Other spellings of a name or an address are not taken for loopback.
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
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
                Endpoint::parse(base, false).map(|endpoint| endpoint.url),
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
        for base in [
            "",
            "api.example.com",
            "/v1",
            "ftp://example.com",
            "https://",
            "https://user:password@example.com",
            "https://example.com/?key=1",
            "https://exa mple.com",
        ] {
            assert!(
                matches!(
                    Endpoint::parse(base, true),
                    Err(CloudError::InvalidEndpoint { .. })
                ),
                "{base}"
            );
        }
    }
}

//! URLs that a request can go to.

use http::Uri;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The longest name that the domain name system has.
const MAX_HOST_BYTES: usize = 253;

/// An absolute `https` or `http` URL, every part of it checked. Its `Debug` output leaves the query out: downloads are
/// signed there.
///
/// ```
/// use niwaki_http::{InvalidUrl, Url};
///
/// let url: Url = "https://example.com:8443/models/a.niwaki?part=1".parse()?;
/// assert_eq!((url.host(), url.port()), ("example.com", 8443));
/// assert_eq!(url.target(), "/models/a.niwaki?part=1");
/// assert_eq!("https://example.com:99999".parse::<Url>(), Err(InvalidUrl::Port));
/// # Ok::<(), InvalidUrl>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Url {
    secure: bool,
    /// As it was written, an IPv6 address in brackets.
    host: String,
    port: Option<u16>,
    /// Path and query.
    target: String,
}

/// Why a text is no URL that a request can go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// Not the form of a URL.
    #[error("it is not a URL")]
    Syntax,
    /// No host in it.
    #[error("it names no host")]
    NoHost,
    /// Neither `https` nor `http`.
    #[error("it begins neither with https:// nor with http://")]
    Scheme,
    /// A user name, perhaps with a password, before the host.
    #[error("a user name or password in it would end up in logs")]
    Credentials,
    /// The host is neither a name of letters, digits, dots and hyphens nor an address.
    #[error("its host is neither a name nor an address")]
    Host,
    /// A colon after the host, and no port after that.
    #[error("its port is not a number from 1 to 65535")]
    Port,
    /// A `#`: what follows it never reaches a server.
    #[error("it has a fragment, which begins with #")]
    Fragment,
}

impl Url {
    /// The same server and another path, with or without a query.
    ///
    /// # Errors
    /// [`InvalidUrl::Syntax`] when `target` does not begin with `/`, or holds what no path can.
    pub fn with_target(&self, target: &str) -> Result<Url, InvalidUrl> {
        if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidUrl::Syntax);
        }
        format!("{}://{}{target}", self.scheme(), self.authority()).parse()
    }

    /// Whether it is `https`.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        without_brackets(&self.host).unwrap_or(&self.host)
    }

    /// The port, 443 or 80 where none is given.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.secure { 443 } else { 80 })
    }

    /// Host and, if it was given, port.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// Path and query, as a request names what it is for.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path.
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(self.target.as_str(), |(path, _)| path)
    }

    /// What follows the path after a `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// Whether its host is this machine: `localhost`, `127.0.0.0/8` or `::1`. Other spellings of a name or an address
    /// are not taken for it.
    pub fn is_loopback(&self) -> bool {
        let address = self.host().parse::<IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Url, InvalidUrl> {
        if text.contains('#') {
            return Err(InvalidUrl::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| InvalidUrl::Syntax)?;
        let authority = uri.authority().ok_or(InvalidUrl::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(InvalidUrl::Credentials);
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(InvalidUrl::NoHost);
        }
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(InvalidUrl::Scheme),
        };
        if !is_host(host) {
            return Err(InvalidUrl::Host);
        }
        let after_host = authority.as_str().get(host.len()..).unwrap_or_default();
        let target = uri
            .path_and_query()
            .map_or("/", |target| target.as_str())
            .to_owned();
        // The rest of the line that a request begins with follows it.
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidUrl::Syntax);
        }
        Ok(Url {
            secure,
            host: host.to_owned(),
            port: port(after_host)?,
            // A URL may have a query right after its host.
            target: match target.starts_with('/') {
                true => target,
                false => format!("/{target}"),
            },
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.scheme(), self.authority());
        write!(f, "{scheme}://{authority}{}", self.target)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.scheme(), self.authority());
        write!(f, "{scheme}://{authority}{}", self.path())
    }
}

fn without_brackets(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

fn is_host(host: &str) -> bool {
    match without_brackets(host) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            host.len() <= MAX_HOST_BYTES
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    }
}

/// What follows the host: nothing, or a colon and the port.
fn port(text: &str) -> Result<Option<u16>, InvalidUrl> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix(':').ok_or(InvalidUrl::Host)?;
    // A number may have a sign in Rust, but not here.
    match digits.parse() {
        Ok(port) if port > 0 && !digits.starts_with('+') => Ok(Some(port)),
        _ => Err(InvalidUrl::Port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Url, InvalidUrl> {
        text.parse()
    }

    #[test]
    fn a_url_has_its_parts() {
        for (text, secure, host, port, target) in [
            ("https://example.com", true, "example.com", 443, "/"),
            ("http://example.com/", false, "example.com", 80, "/"),
            ("HTTPS://example.com:1/a", true, "example.com", 1, "/a"),
            (
                "https://a_b-c.example:65535",
                true,
                "a_b-c.example",
                65535,
                "/",
            ),
            ("http://127.0.0.1:8080/v1", false, "127.0.0.1", 8080, "/v1"),
            ("http://[::1]:8080", false, "::1", 8080, "/"),
            ("https://[::1]/", true, "::1", 443, "/"),
            ("https://a/b%20c?d=e&f", true, "a", 443, "/b%20c?d=e&f"),
            ("https://a?d=e", true, "a", 443, "/?d=e"),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(
                (url.is_secure(), url.host(), url.port(), url.target()),
                (secure, host, port, target),
                "{text}"
            );
            assert_eq!(parse(&url.to_string()), Ok(url), "{text}");
        }
    }

    #[test]
    fn what_no_request_can_go_to_is_refused_with_the_reason() {
        for (text, error) in [
            ("", InvalidUrl::Syntax),
            ("https://", InvalidUrl::Syntax),
            ("https:///path", InvalidUrl::Syntax),
            ("https://exa mple.com", InvalidUrl::Syntax),
            ("https://example.com/a b", InvalidUrl::Syntax),
            ("https://example.com/\r\nx: y", InvalidUrl::Syntax),
            ("https://example.com\\@evil.example", InvalidUrl::Syntax),
            ("https://example.com/ä", InvalidUrl::Syntax),
            ("https://exämple.com", InvalidUrl::Syntax),
            ("https://[::1", InvalidUrl::Syntax),
            ("/v1", InvalidUrl::NoHost),
            ("https://:443", InvalidUrl::NoHost),
            ("api.example.com", InvalidUrl::Scheme),
            ("localhost:8080", InvalidUrl::Scheme),
            ("ftp://example.com", InvalidUrl::Scheme),
            ("file://example.com/etc/passwd", InvalidUrl::Scheme),
            ("https://user@example.com", InvalidUrl::Credentials),
            ("https://user:word@example.com", InvalidUrl::Credentials),
            (
                "https://example.com:443@evil.example",
                InvalidUrl::Credentials,
            ),
            ("https://[::1]evil.example", InvalidUrl::Host),
            ("https://[1.2.3.4]", InvalidUrl::Host),
            ("https://[fe80::1%25eth0]", InvalidUrl::Host),
            ("https://example.com%2eevil.example", InvalidUrl::Syntax),
            ("https://$(id)", InvalidUrl::Host),
            ("https://a,b", InvalidUrl::Host),
            ("https://example.com:", InvalidUrl::Port),
            ("https://example.com:/", InvalidUrl::Port),
            ("https://example.com:0", InvalidUrl::Port),
            ("https://example.com:+80", InvalidUrl::Port),
            ("https://example.com:-1", InvalidUrl::Port),
            ("https://example.com:http", InvalidUrl::Port),
            ("https://example.com:80a", InvalidUrl::Port),
            ("https://example.com:65536", InvalidUrl::Port),
            ("https://example.com:99999", InvalidUrl::Port),
            ("https://example.com:99999999999999999999", InvalidUrl::Port),
            ("https://[::1]:99999", InvalidUrl::Port),
            ("https://127.0.0.1:0/v1", InvalidUrl::Port),
            ("https://example.com/#part", InvalidUrl::Fragment),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
        let long = format!("https://{}", "a".repeat(254));
        assert_eq!(parse(&long), Err(InvalidUrl::Host));
    }

    #[test]
    fn loopback_is_told_from_what_looks_like_it() {
        for text in [
            "http://localhost",
            "http://localhost:1",
            "http://127.0.0.1",
            "http://127.9.9.9",
            "http://[::1]",
        ] {
            assert!(parse(text).unwrap().is_loopback(), "{text}");
        }
        for text in [
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://0.0.0.0",
            "http://10.0.0.1",
            "http://2130706433",
            "http://[::ffff:127.0.0.1]",
            "http://LOCALHOST",
        ] {
            assert!(!parse(text).unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn another_path_stays_with_the_server() {
        let base = parse("https://example.com:8443/proxy?key=1").unwrap();
        let url = base.with_target("/v1/models?x").unwrap();
        assert_eq!(url.to_string(), "https://example.com:8443/v1/models?x");
        for target in ["", "v1", ":80/", "/a b", "/\r\nx", "/ä"] {
            assert_eq!(
                base.with_target(target),
                Err(InvalidUrl::Syntax),
                "{target:?}"
            );
        }
        assert_eq!(
            base.with_target("//evil.example").unwrap().host(),
            "example.com"
        );
    }

    #[test]
    fn a_query_is_not_printed() {
        let url = parse("https://example.com/model?signature=secret").unwrap();
        assert_eq!(format!("{url:?}"), "https://example.com/model");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_taken_is_the_same_when_written(text in ".{0,40}", rest in "[ -~]{0,20}") {
            for text in [text, format!("https://{rest}"), format!("http://a:{rest}")] {
                if let Ok(url) = parse(&text) {
                    prop_assert_eq!(parse(&url.to_string()), Ok(url));
                }
            }
        }
    }
}

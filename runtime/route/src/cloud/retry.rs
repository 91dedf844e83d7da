//! When to send a request again.

use super::error::CloudError;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

/// How often, and how soon, a request is sent again before its first token came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most times it is sent again.
    pub max_retries: u32,
    /// The longest wait before the first retry; it doubles with each. The wait is drawn between half of it and
    /// all of it, so that many devices do not come back at once.
    pub backoff: Duration,
    /// The longest wait. An endpoint that asks for more by `Retry-After` is not waited for: the request fails
    /// at once, with what it asked for in the error.
    pub max_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            max_retries: 2,
            backoff: Duration::from_millis(500),
            max_wait: Duration::from_secs(10),
        }
    }
}

impl RetryPolicy {
    /// Sends every request once.
    pub const NEVER: RetryPolicy = RetryPolicy {
        max_retries: 0,
        backoff: Duration::ZERO,
        max_wait: Duration::ZERO,
    };

    /// How long to wait before the next attempt, after `attempts` of them; `None`: give up.
    pub(super) fn wait(
        &self,
        error: &CloudError,
        retry_after: Option<Duration>,
        attempts: u32,
    ) -> Option<Duration> {
        if !error.may_pass() || attempts > self.max_retries {
            return None;
        }
        if let Some(wait) = retry_after {
            return (wait <= self.max_wait).then_some(wait);
        }
        let doublings = attempts.saturating_sub(1).min(16);
        let longest = self
            .backoff
            .saturating_mul(1 << doublings)
            .min(self.max_wait);
        Some(longest / 2 + (longest / 2).mul_f64(random_share()))
    }
}

/// A number in 0 ..= 1 that differs between devices and calls. It only spreads waits.
fn random_share() -> f64 {
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_retries: 3,
        backoff: Duration::from_millis(100),
        max_wait: Duration::from_millis(300),
    };

    fn failed() -> CloudError {
        CloudError::Server {
            status: 503,
            code: None,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        for (sent, longest_ms) in [(1, 100), (2, 200), (3, 300)] {
            let wait = POLICY.wait(&failed(), None, sent).unwrap();
            let longest = Duration::from_millis(longest_ms);
            assert!(wait >= longest / 2 && wait <= longest, "{sent}: {wait:?}");
        }
        assert_eq!(POLICY.wait(&failed(), None, 4), None);
    }

    #[test]
    fn an_endpoint_is_waited_for_as_it_asks_or_not_at_all() {
        let asked = Duration::from_millis(250);
        assert_eq!(POLICY.wait(&failed(), Some(asked), 1), Some(asked));
        assert_eq!(
            POLICY.wait(&failed(), Some(Duration::from_secs(60)), 1),
            None
        );
    }

    #[test]
    fn what_cannot_pass_is_not_sent_again() {
        for error in [
            CloudError::Unauthorized {
                status: 401,
                code: None,
            },
            CloudError::Server {
                status: 501,
                code: None,
            },
            CloudError::Cancelled,
        ] {
            assert_eq!(POLICY.wait(&error, None, 1), None, "{error}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now),
            Some(Duration::ZERO)
        );
        for nonsense in ["", "-1", "soon", "99999999999999999999999"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
    }
}

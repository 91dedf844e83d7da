//! Keys and values of the tokens a session has seen.

mod cache;

pub(crate) use cache::{CacheError, KvCache, pages_at_peak};

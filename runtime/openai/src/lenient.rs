//! Reading what clients and servers write in more than one way.

use serde::{Deserialize, Deserializer};

/// `null` is as good as an absent field.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One string, or a list of them.
pub(crate) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Strings {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Strings::One(string)) => vec![string],
        Some(Strings::Many(strings)) => strings,
        None => Vec::new(),
    })
}

/// An integer of 64 bits, with or without sign: what the API calls a seed.
pub(crate) fn any_integer<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Integer {
        Unsigned(u64),
        Signed(i64),
    }
    Ok(
        Option::deserialize(deserializer)?.map(|integer| match integer {
            Integer::Unsigned(number) => number,
            Integer::Signed(number) => number as u64,
        }),
    )
}

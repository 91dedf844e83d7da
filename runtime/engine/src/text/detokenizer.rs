//! Tokens to text as they come.

use super::decoding::TextStart;
use super::tokenizer::Tokenizer;

/// Turns tokens into text one at a time; never gives out half a character, and the work per token does not
/// depend on how many came before.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    start: TextStart,
    utf8: Utf8Stream,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Detokenizer {
            tokenizer,
            skip_special,
            start: TextStart::default(),
            utf8: Utf8Stream::default(),
        }
    }

    /// The text that `token` completes; empty when it ends inside a character, is skipped, or does not exist.
    pub fn push(&mut self, token: u32) -> String {
        match self
            .tokenizer
            .piece_bytes(token, self.skip_special, &mut self.start)
        {
            Some(bytes) => self.utf8.push(&bytes),
            None => String::new(),
        }
    }

    /// What is left at the end of the text: a replacement character if it ends inside a character.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}

/// Bytes in, whole characters out; invalid bytes become U+FFFD as in [`String::from_utf8_lossy`].
#[derive(Clone, Debug, Default)]
struct Utf8Stream {
    /// The first bytes of a character, at most 3.
    pending: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.pending);
        input.extend_from_slice(bytes);
        let mut text = String::with_capacity(input.len());
        let mut rest = input.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                None => {
                    self.pending = after.to_vec();
                    return text;
                }
                Some(invalid) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = after.get(invalid..).unwrap_or_default();
                }
            }
        }
    }

    fn finish(&mut self) -> String {
        if std::mem::take(&mut self.pending).is_empty() {
            String::new()
        } else {
            char::REPLACEMENT_CHARACTER.to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(parts: &[&[u8]]) -> (Vec<String>, String) {
        let mut utf8 = Utf8Stream::default();
        let texts: Vec<String> = parts.iter().map(|part| utf8.push(part)).collect();
        let all = texts.concat() + &utf8.finish();
        (texts, all)
    }

    #[test]
    fn text_split_at_any_byte_comes_out_whole() {
        let text = "aé漢🌳߷\u{10ffff}\u{fffd}z";
        let bytes = text.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let (texts, all) =
                    stream(&[&bytes[..first], &bytes[first..second], &bytes[second..]]);
                assert_eq!(all, text);
                let whole = text
                    .char_indices()
                    .map(|(at, _)| at)
                    .filter(|at| *at <= first)
                    .max()
                    .unwrap_or(0);
                let whole = if text.is_char_boundary(first) {
                    first
                } else {
                    whole
                };
                assert_eq!(
                    texts[0],
                    text[..whole],
                    "nothing is held back and no character is halved"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_out_as_the_lossy_conversion_has_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in any::<prop::sample::Index>()
        ) {
            let cut = cut.index(bytes.len() + 1);
            let (_, all) = stream(&[&bytes[..cut], &bytes[cut..]]);
            prop_assert_eq!(all, String::from_utf8_lossy(&bytes));
        }
    }
}

//! A text as the tokens that a model is to predict.

use super::window::{Cut, Window};
use niwaki::{TextError, Tokenizer};

/// Where the model's beginning-of-text token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginnings {
    /// Nowhere: the text as it is.
    None,
    /// Where the tokenizer puts it: before the text.
    OfText,
    /// In place of the first token of each window, the text's own beginning included.
    OfWindows(u32),
    /// Before each passage; passages are separated by empty lines, which are left out.
    OfPassages(u32),
}

impl Beginnings {
    /// As the model saw texts: each window begins with the token that the tokenizer puts before every text, if it does so.
    ///
    /// # Errors
    /// When the tokenizer does not work.
    pub fn of(tokenizer: &Tokenizer) -> Result<Beginnings, TextError> {
        let first = tokenizer.first_token()?;
        Ok(first.map_or(Beginnings::None, Beginnings::OfWindows))
    }
}

/// A text as tokens, ready to be cut into windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Vec<u32>,
    /// Stands in place of each window's first token.
    first: Option<u32>,
}

impl TokenStream {
    /// Encodes a text, line ends and empty lines included.
    ///
    /// # Errors
    /// When the tokenizer refuses it.
    pub fn encode(
        text: &str,
        tokenizer: &Tokenizer,
        beginnings: Beginnings,
    ) -> Result<TokenStream, TextError> {
        let (tokens, first) = match beginnings {
            Beginnings::None => (tokenizer.encode(text, false)?, None),
            Beginnings::OfText => (tokenizer.encode(text, true)?, None),
            Beginnings::OfWindows(bos) => {
                let mut tokens = tokenizer.encode(text, true)?;
                if tokens.first() != Some(&bos) {
                    tokens.insert(0, bos);
                }
                (tokens, Some(bos))
            }
            Beginnings::OfPassages(bos) => {
                let mut tokens = Vec::new();
                let passages = text.split("\n\n").map(|passage| passage.trim_matches('\n'));
                for passage in passages.filter(|passage| !passage.is_empty()) {
                    tokens.push(bos);
                    tokens.extend(tokenizer.encode(passage, false)?);
                }
                (tokens, None)
            }
        };
        Ok(TokenStream { tokens, first })
    }

    /// The tokens, what begins them included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Cuts the stream into windows, in the order of the text.
    pub fn windows<'a>(&'a self, cut: &Cut) -> impl ExactSizeIterator<Item = Window> + use<'a> {
        cut.spans(self.tokens.len()).into_iter().map(|span| {
            let mut inputs = self.tokens[span.inputs.clone()].to_vec();
            let targets = self.tokens[span.targets].to_vec();
            if let (Some(input), Some(first)) = (inputs.first_mut(), self.first) {
                *input = first;
            }
            Window { inputs, targets }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Beginnings, Cut, TokenStream, Window};
    use niwaki::Tokenizer;
    use serde_json::json;

    /// Letters as tokens, a line end as token 3.
    fn tokenizer() -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "added_tokens": [],
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                      "vocab": {"<s>": 0, "a": 1, "b": 2, "\n": 3}, "merges": []}
        });
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    fn tokens(text: &str, beginnings: Beginnings) -> Vec<u32> {
        let tokenizer = tokenizer().with_first_token(Some(0));
        let stream = TokenStream::encode(text, &tokenizer, beginnings).unwrap();
        stream.tokens().to_vec()
    }

    #[test]
    fn a_text_is_scored_with_its_line_ends_and_empty_lines() {
        let text = "\na\n\n\nb\n";
        assert_eq!(tokens(text, Beginnings::None), [3, 1, 3, 3, 3, 2, 3]);
        assert_eq!(tokens(text, Beginnings::OfText), [0, 3, 1, 3, 3, 3, 2, 3]);
        assert_eq!(
            tokens(text, Beginnings::OfWindows(0)),
            tokens(text, Beginnings::OfText)
        );
        assert_eq!(tokens(text, Beginnings::OfPassages(0)), [0, 1, 0, 2]);
    }

    #[test]
    fn windows_begin_as_the_tokenizer_begins_texts() {
        assert_eq!(Beginnings::of(&tokenizer()).unwrap(), Beginnings::None);
        assert_eq!(
            Beginnings::of(&tokenizer().with_first_token(Some(0))).unwrap(),
            Beginnings::OfWindows(0)
        );
    }

    #[test]
    fn the_beginning_takes_the_place_of_each_windows_first_token() {
        let stream = TokenStream::encode("abaab", &tokenizer(), Beginnings::OfWindows(0)).unwrap();
        let windows: Vec<Window> = stream.windows(&Cut::every(3)).collect();
        let window = |inputs: &[u32], targets: &[u32]| Window {
            inputs: inputs.to_vec(),
            targets: targets.to_vec(),
        };
        assert_eq!(
            windows,
            [window(&[0, 1, 2], &[1, 2, 1]), window(&[0, 1], &[1, 2])]
        );
    }
}

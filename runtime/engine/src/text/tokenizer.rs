//! The tokenizer of a bundle.

use super::decoding::{Decoding, TextStart};
use super::detokenizer::Detokenizer;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Longest tokenizer.json that is read; the largest vocabularies take about 35 MB.
const MAX_BYTES: usize = 64 << 20;

/// Why text and tokens could not be converted. No variant carries the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// tokenizer.json is longer than any real one.
    #[error("tokenizer.json has {size_bytes} bytes, more than the {MAX_BYTES} allowed")]
    TooLarge {
        /// Its length.
        size_bytes: usize,
    },
    /// tokenizer.json does not describe a tokenizer.
    #[error("tokenizer.json is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tokenizer library gave up on this tokenizer.
    #[error("tokenizer.json describes a tokenizer that does not work")]
    Unusable,
    /// The text could not be encoded.
    #[error("the text cannot be encoded with this tokenizer")]
    Encode,
    /// The model has no tokenizer.
    #[error(
        "the model has no tokenizer; put tokenizer.json beside the export and build the bundle again"
    )]
    NoTokenizer,
    /// The tokenizer's decoder cannot run token by token.
    #[error(
        "the tokenizer's decoder {0} is not supported: its tokens cannot be turned into text one by one"
    )]
    UnsupportedDecoder(String),
}

/// Text to tokens and back. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    decoding: Result<Arc<Decoding>, String>,
    /// Stands before every text, whatever the post-processor does.
    first_token: Option<u32>,
}

impl Tokenizer {
    /// Reads a tokenizer.json. Its truncation and padding, meant for training, are switched off.
    ///
    /// # Errors
    /// [`TextError`] when it is too long or not valid.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer, TextError> {
        if json.len() > MAX_BYTES {
            return Err(TextError::TooLarge {
                size_bytes: json.len(),
            });
        }
        let load = || {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        };
        // The library asserts some properties of the file instead of checking them.
        let inner = catch_unwind(load)
            .map_err(|_| TextError::Unusable)?
            .map_err(TextError::Invalid)?;
        let decoder = serde_json::to_value(inner.get_decoder())
            .map_err(|error| TextError::Invalid(error.into()))?;
        let decoding = Decoding::from_json(&decoder).map(Arc::new);
        Ok(Tokenizer {
            inner: Arc::new(inner),
            decoding,
            first_token: None,
        })
    }

    /// This tokenizer, with a token before every text that does not begin with it already: for models whose texts begin
    /// so though the post-processor of tokenizer.json does not say it.
    #[must_use]
    pub fn with_first_token(self, first_token: Option<u32>) -> Tokenizer {
        Tokenizer {
            first_token,
            ..self
        }
    }

    /// The tokens of `text`; with `add_special`, those that the model wants around a text as well.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encode = || self.inner.encode_fast(text, add_special);
        let encoding = catch_unwind(AssertUnwindSafe(encode))
            .map_err(|_| TextError::Unusable)?
            .map_err(|_| TextError::Encode)?;
        let mut tokens = encoding.get_ids().to_vec();
        if let Some(first) = self.first_token.filter(|_| add_special)
            && tokens.first() != Some(&first)
        {
            tokens.insert(0, first);
        }
        Ok(tokens)
    }

    /// The token that [`encode`](Self::encode) puts before every text, if it does: a beginning-of-text token.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn first_token(&self) -> Result<Option<u32>, TextError> {
        let (with, without) = (self.encode("a", true)?, self.encode("a", false)?);
        let first = with.first().filter(|first| without.first() != Some(first));
        Ok(first.copied())
    }

    /// The text of `tokens`; with `skip_special`, without those that are no text.
    ///
    /// # Errors
    /// [`TextError::UnsupportedDecoder`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut detokenizer = self.detokenizer(skip_special)?;
        let mut text: String = tokens
            .iter()
            .map(|token| detokenizer.push(*token))
            .collect();
        text.push_str(&detokenizer.finish());
        Ok(text)
    }

    /// Begins turning tokens into text one by one.
    ///
    /// # Errors
    /// [`TextError::UnsupportedDecoder`].
    pub fn detokenizer(&self, skip_special: bool) -> Result<Detokenizer, TextError> {
        match &self.decoding {
            Ok(_) => Ok(Detokenizer::new(self.clone(), skip_special)),
            Err(kind) => Err(TextError::UnsupportedDecoder(kind.clone())),
        }
    }

    /// A token as the vocabulary spells it: not text, which may take several tokens for one character.
    pub fn piece(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The id of a token's exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is special: a mark, not text.
    pub fn is_special(&self, token: u32) -> bool {
        self.inner
            .id_to_token(token)
            .is_some_and(|piece| self.piece_is_special(&piece))
    }

    /// Number of tokens, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub(super) fn piece_bytes(
        &self,
        token: u32,
        skip_special: bool,
        start: &mut TextStart,
    ) -> Option<Vec<u8>> {
        let piece = self.inner.id_to_token(token)?;
        if skip_special && self.piece_is_special(&piece) {
            return None;
        }
        Some(self.decoding.as_ref().ok()?.piece_bytes(&piece, start))
    }

    fn piece_is_special(&self, piece: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(piece)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("decoding", &self.decoding)
            .finish_non_exhaustive()
    }
}

//! Why a model could not be measured.

use niwaki::SessionError;

/// Why a model could not be measured. Windows and positions in them count from 0.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// A model refused a window, for example because it exceeds the context.
    #[error("{model} does not run on window {window} of the text")]
    Session {
        /// The model's name.
        model: String,
        /// The window.
        window: usize,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// A model predicts no numbers.
    #[error(
        "{model} is broken: its logits after token {position} of window {window} hold NaN or infinite values"
    )]
    NotFinite {
        /// The model's name.
        model: String,
        /// The window.
        window: usize,
        /// The input after which they come.
        position: usize,
    },
    /// The text has a token that a model never predicts.
    #[error("token {token} of the text is beyond the {vocabulary} tokens that {model} predicts")]
    UnknownToken {
        /// The model's name.
        model: String,
        /// The token.
        token: u32,
        /// Tokens that it predicts.
        vocabulary: usize,
    },
    /// The predictions are of different vocabularies.
    #[error(
        "{model} predicts {vocabulary} tokens and {reference} {reference_vocabulary}: only models with the same \
         vocabulary can be compared"
    )]
    Vocabularies {
        /// The model's name.
        model: String,
        /// Tokens that it predicts.
        vocabulary: usize,
        /// The reference's name.
        reference: String,
        /// Tokens that it predicts.
        reference_vocabulary: usize,
    },
}

//! From the text that tokens make to the text that is given out: a chain of filters.
//!
//! An app's filters come first, in the order they were added, then the stop strings, which are a filter like any other. Stop
//! strings are last because their promise is about what is given out: none of it holds one, also where a filter put
//! the text together that makes one.

mod chain;
mod stop_strings;

pub(super) use chain::FilterChain;

use super::outcome::FinishReason;
use std::fmt;
use std::sync::Arc;

/// Changes, holds back or ends the text of a generation before it is given out.
///
/// Text comes in pieces, as tokens happen to cut it, never half a character. What comes out should not depend on where the
/// cuts are: a filter that looks for something longer holds back what may be the beginning of it.
///
/// ```
/// use niwaki::{FilteredText, GenerateOptions, TextFilter};
///
/// /// Gives text out line by line, and ends it before one that holds the word.
/// #[derive(Clone)]
/// struct EndsBefore {
///     word: &'static str,
///     line: String,
/// }
///
/// impl TextFilter for EndsBefore {
///     fn push(&mut self, piece: &str) -> FilteredText {
///         self.line.push_str(piece);
///         let mut certain = String::new();
///         while let Some(end) = self.line.find('\n') {
///             let rest = self.line.split_off(end + 1);
///             let line = std::mem::replace(&mut self.line, rest);
///             if line.contains(self.word) {
///                 return FilteredText::ends(certain);
///             }
///             certain.push_str(&line);
///         }
///         FilteredText::goes_on(certain)
///     }
///
///     fn finish(&mut self) -> String {
///         let line = std::mem::take(&mut self.line);
///         if line.contains(self.word) { String::new() } else { line }
///     }
///
///     fn fork(&self) -> Box<dyn TextFilter> {
///         Box::new(self.clone())
///     }
/// }
///
/// let filter = EndsBefore { word: "secret", line: String::new() };
/// let mut once = filter.clone();
/// assert_eq!(once.push("one\ntwo sec"), FilteredText::goes_on("one\n"));
/// assert_eq!(once.push("ret\n"), FilteredText::ends(""));
///
/// let options = GenerateOptions::default().with_filter(filter);
/// ```
pub trait TextFilter: Send + Sync {
    /// Takes the next piece, never an empty one. Answers the text that is certain now, and whether the text ends with
    /// it; nothing is pushed after that, and what is still held back is dropped.
    fn push(&mut self, piece: &str) -> FilteredText;

    /// Answers what was held back, at the end of the text.
    fn finish(&mut self) -> String {
        String::new()
    }

    /// A filter of its own that has seen the same text.
    fn fork(&self) -> Box<dyn TextFilter>;
}

/// What a filter lets through.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FilteredText {
    /// Text that is certain. May be empty.
    pub text: String,
    /// Why the text ends after it, if it does: [`FinishReason::Filtered`] unless another reason says it better.
    pub end: Option<FinishReason>,
}

impl FilteredText {
    /// Text after which more may come.
    pub fn goes_on(text: impl Into<String>) -> FilteredText {
        FilteredText {
            text: text.into(),
            end: None,
        }
    }

    /// The last text, with [`FinishReason::Filtered`].
    pub fn ends(text: impl Into<String>) -> FilteredText {
        FilteredText {
            text: text.into(),
            end: Some(FinishReason::Filtered),
        }
    }
}

/// The length of the text alone: what a model writes for users does not belong into logs.
impl fmt::Debug for FilteredText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilteredText")
            .field("text_bytes", &self.text.len())
            .field("end", &self.end)
            .finish()
    }
}

/// An app's filters for [`GenerateOptions`](crate::GenerateOptions), in the order they were added.
///
/// They are patterns: every generation runs forks of them, so that copies of options share nothing that changes. Equal are
/// those that hold the same filters, as copies of options do; two filters that do the same are two.
#[derive(Clone, Default)]
pub struct TextFilters(Vec<Arc<dyn TextFilter>>);

impl TextFilters {
    /// Adds a filter.
    pub fn push(&mut self, filter: impl TextFilter + 'static) {
        self.0.push(Arc::new(filter));
    }

    /// Number of filters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A fork of each.
    fn forks(&self) -> impl Iterator<Item = Box<dyn TextFilter>> {
        self.0.iter().map(|filter| filter.fork())
    }
}

impl PartialEq for TextFilters {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.len() == other.len() && pairs.all(|(one, other)| Arc::ptr_eq(one, other))
    }
}

/// Their number alone: what filters hold may be text of a user.
impl fmt::Debug for TextFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TextFilters").field(&self.len()).finish()
    }
}

//! How a stream of tokens is cut into windows.

use std::ops::Range;

/// How a stream of tokens is cut into windows.
///
/// A window of `n` tokens is what the model sees: it predicts a token after each of them, the last one from all `n`. The
/// next window begins `stride_tokens` later. A token that several windows could predict is predicted by the first of
/// them, so it is never counted twice; what a window sees of others is context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Tokens that the model sees at most.
    pub window_tokens: usize,
    /// Tokens from the beginning of a window to that of the next.
    pub stride_tokens: usize,
    /// A token is predicted only if at least so many stand before it in its window.
    pub min_context_tokens: usize,
}

impl Cut {
    /// Windows one after the other: every token but the first is predicted once.
    pub fn every(window_tokens: usize) -> Cut {
        Cut {
            window_tokens,
            stride_tokens: window_tokens,
            min_context_tokens: 1,
        }
    }

    /// The windows of a stream of `tokens` that predict anything. Sizes of 0 count as 1.
    pub(super) fn spans(&self, tokens: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        let (window, stride) = (self.window_tokens.max(1), self.stride_tokens.max(1));
        let mut scored = 0;
        for begin in (0..tokens).step_by(stride) {
            // Behind the last token nothing is predicted.
            let end = begin.saturating_add(window).min(tokens - 1);
            let context = self.min_context_tokens.max(1);
            let from = begin.saturating_add(context).max(scored);
            if from <= end {
                scored = end + 1;
                spans.push(Span {
                    inputs: begin..end,
                    targets: from..scored,
                });
            }
            if end + 1 == tokens {
                break;
            }
        }
        spans
    }
}

/// Where a window lies in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) inputs: Range<usize>,
    pub(super) targets: Range<usize>,
}

/// What a model sees, and what it is to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens that the model sees, at least one.
    pub inputs: Vec<u32>,
    /// The tokens that come after each of the last inputs: at least one, at most as many as there are inputs.
    pub targets: Vec<u32>,
}

impl Window {
    /// Inputs that are only context: nothing is predicted after them.
    pub fn context_tokens(&self) -> usize {
        self.inputs.len().saturating_sub(self.targets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::{Cut, Span};
    use proptest::prelude::*;

    fn cut(window_tokens: usize, stride_tokens: usize, min_context_tokens: usize) -> Cut {
        Cut {
            window_tokens,
            stride_tokens,
            min_context_tokens,
        }
    }

    fn span(inputs: std::ops::Range<usize>, targets: std::ops::Range<usize>) -> Span {
        Span { inputs, targets }
    }

    #[test]
    fn windows_one_after_the_other_share_no_input() {
        assert_eq!(
            Cut::every(4).spans(10),
            [span(0..4, 1..5), span(4..8, 5..9), span(8..9, 9..10)]
        );
        assert_eq!(Cut::every(4).spans(9), [span(0..4, 1..5), span(4..8, 5..9)]);
        assert_eq!(Cut::every(4).spans(1), []);
        assert_eq!(Cut::every(4).spans(0), []);
    }

    /// `max_length = 5`, `stride = 2` in the guide of Hugging Face's transformers: predictions after the last token of a
    /// window are not counted there.
    #[test]
    fn overlapping_windows_are_those_of_transformers_guide() {
        assert_eq!(
            cut(4, 2, 1).spans(10),
            [
                span(0..4, 1..5),
                span(2..6, 5..7),
                span(4..8, 7..9),
                span(6..9, 9..10)
            ]
        );
    }

    /// 8 tokens a chunk in llama.cpp's perplexity: logits 4, 5 and 6 of each count.
    #[test]
    fn the_second_halves_of_chunks_are_those_of_llama_cpp() {
        assert_eq!(
            cut(7, 8, 5).spans(16),
            [span(0..7, 5..8), span(8..15, 13..16)]
        );
    }

    proptest! {
        #[test]
        fn no_token_is_predicted_twice_and_each_from_enough_before_it(
            tokens in 0..200usize, window in 0..40usize, stride in 0..50usize, context in 0..50usize
        ) {
            let cut = cut(window, stride, context);
            let mut predicted = vec![false; tokens];
            for Span { inputs, targets } in cut.spans(tokens) {
                prop_assert!(!targets.is_empty() && targets.end == inputs.end + 1);
                prop_assert!(inputs.len() <= window.max(1) && targets.len() <= inputs.len());
                prop_assert!(targets.start - inputs.start >= context);
                for target in targets {
                    prop_assert!(!std::mem::replace(&mut predicted[target], true));
                }
            }
            if stride <= window && context <= 1 {
                prop_assert!(predicted.iter().skip(1).all(|predicted| *predicted));
            }
        }
    }
}

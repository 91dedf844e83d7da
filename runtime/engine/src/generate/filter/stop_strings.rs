//! Finding stop strings in a text that comes in pieces.

use super::{FilteredText, TextFilter};
use crate::generate::outcome::FinishReason;

/// Looks for stop strings. Holds text back only while it may still become one.
#[derive(Clone, Default)]
pub(super) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings are passed over: they would end every text before it begins.
    pub(super) fn new(strings: &[String]) -> StopStrings {
        StopStrings {
            strings: strings
                .iter()
                .filter(|string| !string.is_empty())
                .cloned()
                .collect(),
            held: String::new(),
        }
    }

    /// Whether nothing is looked for.
    pub(super) fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Where the longest end of the held text begins that is the beginning of a stop string.
    fn undecided(&self) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(start, _)| start)
            .filter(|start| *start >= earliest)
            .find(|start| {
                let end = self.held.get(*start..).unwrap_or_default();
                self.strings.iter().any(|string| string.starts_with(end))
            })
            .unwrap_or(self.held.len())
    }
}

impl TextFilter for StopStrings {
    /// The stop string that is complete first counts, so the pieces a text is cut into change nothing.
    fn push(&mut self, piece: &str) -> FilteredText {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|string| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start))
        });
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return FilteredText {
                text,
                end: Some(FinishReason::StopString),
            };
        }
        let kept = self.held.split_off(self.undecided());
        FilteredText::goes_on(std::mem::replace(&mut self.held, kept))
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn fork(&self) -> Box<dyn TextFilter> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(&strings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    /// The text that is certain with a piece, and whether a stop string follows it.
    fn push(stops: &mut StopStrings, piece: &str) -> (String, bool) {
        let passed = stops.push(piece);
        assert!(matches!(passed.end, None | Some(FinishReason::StopString)));
        (passed.text, passed.end.is_some())
    }

    /// The text given out, and whether it was stopped.
    fn feed(stops: &mut StopStrings, pieces: &[&str]) -> (String, bool) {
        let mut text = String::new();
        for piece in pieces {
            let (certain, stopped) = push(stops, piece);
            text.push_str(&certain);
            if stopped {
                return (text, true);
            }
        }
        (text + &stops.finish(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_neither_it_nor_the_rest_comes_out() {
        let mut stops = stops(&["</end>"]);
        assert_eq!(push(&mut stops, "tree</e"), ("tree".into(), false));
        assert_eq!(push(&mut stops, "n"), (String::new(), false));
        assert_eq!(push(&mut stops, "d> more"), (String::new(), true));
    }

    #[test]
    fn text_is_held_back_only_while_it_may_become_a_stop_string() {
        let mut stops = stops(&["aab"]);
        assert_eq!(push(&mut stops, "xa"), ("x".into(), false));
        assert_eq!(push(&mut stops, "a"), (String::new(), false));
        assert_eq!(push(&mut stops, "a"), ("a".into(), false));
        assert_eq!(push(&mut stops, "c"), ("aac".into(), false));
        assert_eq!(push(&mut stops, "a"), (String::new(), false));
        assert_eq!(stops.finish(), "a");
    }

    #[test]
    fn the_first_complete_one_counts_and_empty_ones_do_not() {
        assert_eq!(
            feed(&mut stops(&["abcd", "bc", ""]), &["abcd"]),
            ("a".into(), true)
        );
        assert_eq!(feed(&mut stops(&[""]), &["ab"]), ("ab".into(), false));
    }

    proptest! {
        #[test]
        fn the_way_a_text_is_cut_into_pieces_changes_nothing(
            text in "[ab🌳]{0,24}", strings in proptest::collection::vec("[ab🌳]{0,4}", 0..4),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)
        ) {
            let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| boundaries[cut.index(boundaries.len())]).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            pieces.push(&text[from..]);
            let whole = feed(&mut StopStrings::new(&strings), &[&text]);
            prop_assert_eq!(feed(&mut StopStrings::new(&strings), &pieces), whole.clone());
            let wanted = |string: &&String| !string.is_empty() && text.contains(string.as_str());
            prop_assert_eq!(whole.1, strings.iter().any(|string| wanted(&string)));
            prop_assert!(text.starts_with(&whole.0));
        }
    }
}

//! Finding stop strings in a text that comes in pieces.

/// Looks for stop strings. Holds text back only while it may still become one.
#[derive(Clone, Debug, Default)]
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

    /// Adds a piece. Answers the text that is certain, and whether a stop string follows it.
    ///
    /// The stop string that is complete first counts, so the pieces a text is cut into change nothing.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|string| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start))
        });
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, true);
        }
        let kept = self.held.split_off(self.undecided());
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What was held back, at the end of the text.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
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

#[cfg(test)]
mod tests {
    use super::StopStrings;
    use proptest::prelude::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(&strings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    /// The text given out, and whether it was stopped.
    fn feed(stops: &mut StopStrings, pieces: &[&str]) -> (String, bool) {
        let mut text = String::new();
        for piece in pieces {
            let (certain, stopped) = stops.push(piece);
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
        assert_eq!(stops.push("tree</e"), ("tree".into(), false));
        assert_eq!(stops.push("n"), (String::new(), false));
        assert_eq!(stops.push("d> more"), (String::new(), true));
    }

    #[test]
    fn text_is_held_back_only_while_it_may_become_a_stop_string() {
        let mut stops = stops(&["aab"]);
        assert_eq!(stops.push("xa"), ("x".into(), false));
        assert_eq!(stops.push("a"), (String::new(), false));
        assert_eq!(stops.push("a"), ("a".into(), false));
        assert_eq!(stops.push("c"), ("aac".into(), false));
        assert_eq!(stops.push("a"), (String::new(), false));
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

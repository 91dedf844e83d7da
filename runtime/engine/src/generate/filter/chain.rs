//! The filters of one generation, one after the other.

use super::stop_strings::StopStrings;
use super::{FilteredText, TextFilter, TextFilters};

/// A text's way through all filters.
pub(in crate::generate) struct FilterChain {
    filters: Vec<Box<dyn TextFilter>>,
}

impl FilterChain {
    /// An app's filters, then stop strings.
    pub(in crate::generate) fn new(filters: &TextFilters, stop_strings: &[String]) -> FilterChain {
        let mut filters: Vec<_> = filters.forks().collect();
        let stop_strings = StopStrings::new(stop_strings);
        if !stop_strings.is_empty() {
            filters.push(Box::new(stop_strings));
        }
        FilterChain { filters }
    }

    /// Adds a piece.
    pub(in crate::generate) fn push(&mut self, piece: String) -> FilteredText {
        self.pass(piece, false)
    }

    /// Adds the last piece; what was held back comes out with it. The reason is there if the text ended before.
    pub(in crate::generate) fn finish(&mut self, piece: String) -> FilteredText {
        self.pass(piece, true)
    }

    /// What one filter lets through is the piece of the next. Once one ends the text, it is the last piece of those after
    /// it, and what those before it hold back lies behind the end.
    fn pass(&mut self, piece: String, is_last: bool) -> FilteredText {
        let (mut text, mut end) = (piece, None);
        for filter in &mut self.filters {
            let mut passed = match text.is_empty() {
                true => FilteredText::default(),
                false => filter.push(&text),
            };
            if passed.end.is_some() {
                end = passed.end;
            } else if is_last || end.is_some() {
                passed.text.push_str(&filter.finish());
            }
            text = passed.text;
        }
        FilteredText { text, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::outcome::FinishReason;

    /// Gives out whole words.
    #[derive(Clone, Default)]
    struct Words(String);

    impl TextFilter for Words {
        fn push(&mut self, piece: &str) -> FilteredText {
            self.0.push_str(piece);
            let whole = self.0.rfind(' ').map_or(0, |space| space + 1);
            let rest = self.0.split_off(whole);
            FilteredText::goes_on(std::mem::replace(&mut self.0, rest))
        }

        fn finish(&mut self) -> String {
            std::mem::take(&mut self.0)
        }

        fn fork(&self) -> Box<dyn TextFilter> {
            Box::new(self.clone())
        }
    }

    /// Leaves one character out.
    struct Without(char);

    impl TextFilter for Without {
        fn push(&mut self, piece: &str) -> FilteredText {
            FilteredText::goes_on(piece.replace(self.0, ""))
        }

        fn fork(&self) -> Box<dyn TextFilter> {
            Box::new(Without(self.0))
        }
    }

    /// Ends at a character.
    struct Until(char);

    impl TextFilter for Until {
        fn push(&mut self, piece: &str) -> FilteredText {
            match piece.split_once(self.0) {
                Some((before, _)) => FilteredText::ends(before),
                None => FilteredText::goes_on(piece),
            }
        }

        fn fork(&self) -> Box<dyn TextFilter> {
            Box::new(Until(self.0))
        }
    }

    fn chain(filters: TextFilters, stop_strings: &[&str]) -> FilterChain {
        let stop_strings: Vec<String> = stop_strings.iter().map(|s| (*s).to_owned()).collect();
        FilterChain::new(&filters, &stop_strings)
    }

    fn filters(add: impl Fn(&mut TextFilters)) -> TextFilters {
        let mut filters = TextFilters::default();
        add(&mut filters);
        filters
    }

    #[test]
    fn without_filters_text_comes_out_as_it_goes_in() {
        let mut chain = chain(TextFilters::default(), &[""]);
        assert!(chain.filters.is_empty());
        assert_eq!(chain.push("ab ".into()), FilteredText::goes_on("ab "));
        assert_eq!(chain.finish("c".into()), FilteredText::goes_on("c"));
    }

    #[test]
    fn what_one_filter_lets_through_is_all_that_the_next_one_sees() {
        let with = |filters: TextFilters| {
            let mut chain = chain(filters, &[]);
            chain.push("a b-".into()).text + "|" + &chain.finish("c d".into()).text
        };
        let words_first = filters(|filters| {
            filters.push(Words::default());
            filters.push(Without(' '));
        });
        assert_eq!(with(words_first), "a|b-cd");
        let words_last = filters(|filters| {
            filters.push(Without(' '));
            filters.push(Words::default());
        });
        assert_eq!(with(words_last), "|ab-cd");
    }

    #[test]
    fn a_stop_string_that_a_filter_puts_together_ends_the_text() {
        let mut chain = chain(filters(|filters| filters.push(Without('-'))), &["stop"]);
        assert_eq!(chain.push("a st-".into()), FilteredText::goes_on("a "));
        let stopped = chain.push("--op b".into());
        assert_eq!(stopped.text, "");
        assert_eq!(stopped.end, Some(FinishReason::StopString));
    }

    #[test]
    fn an_end_brings_out_what_later_filters_hold_and_drops_what_earlier_ones_hold() {
        let mut chain = chain(
            filters(|filters| {
                filters.push(Words::default());
                filters.push(Until('.'));
                filters.push(Words::default());
            }),
            &["st"],
        );
        assert_eq!(chain.push("one tw".into()), FilteredText::goes_on("one "));
        // "dropped" is held by the words, "two s" by the later words and the stop strings.
        assert_eq!(
            chain.push("o s. dropped".into()),
            FilteredText::ends("two s")
        );
    }

    #[test]
    fn a_filter_that_ends_the_last_piece_says_so() {
        let held = filters(|filters| filters.push(Words::default()));
        let mut chain = chain(held, &["end"]);
        assert_eq!(chain.push("the_end_of".into()), FilteredText::default());
        let last = chain.finish("_it".into());
        assert_eq!(
            (last.text.as_str(), last.end),
            ("the_", Some(FinishReason::StopString))
        );
    }

    #[test]
    fn forks_hold_back_text_of_their_own() {
        let mut words = Words::default();
        words.push("a b");
        let mut fork = words.fork();
        words.push("c");
        assert_eq!((fork.finish(), words.finish()), ("b".into(), "bc".into()));
    }
}

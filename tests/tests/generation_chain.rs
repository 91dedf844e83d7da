//! An app's sampling steps and text filters in generations, replies, streams and routed requests.
#![allow(clippy::unwrap_used)]

#[path = "../../runtime/engine/tests/letters/mod.rs"]
mod letters;
#[path = "../../runtime/bundle/tests/synthetic/mod.rs"]
mod synthetic;

use letters::{Model, options, text};
use niwaki::{
    Cancellation, Candidates, ChatRequest, Engine, FilteredText, FinishReason, GenerateOptions,
    Message, SamplingStep, Stage, TextFilter,
};
use niwaki_route::{LocalModel, Policy, Prompt, RouteRequest, Router};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Lets only these tokens come, and only so many of them.
#[derive(Clone)]
struct Only {
    tokens: &'static [u32],
    left: usize,
}

impl SamplingStep for Only {
    fn stage(&self) -> Stage {
        Stage::Constraint
    }

    fn apply(&mut self, candidates: &mut Candidates) {
        candidates.retain(|candidate| self.left > 0 && self.tokens.contains(&candidate.token));
    }

    fn accept(&mut self, _: u32) {
        self.left -= 1;
    }

    fn rollback(&mut self, count: usize) {
        self.left += count;
    }

    fn fork(&self) -> Box<dyn SamplingStep> {
        Box::new(self.clone())
    }
}

/// Only a and b, which are tokens of their own and one together.
fn letters(left: usize, max_new_tokens: usize) -> GenerateOptions {
    options(max_new_tokens).with_step(Only {
        tokens: &[1, 2, 4],
        left,
    })
}

#[test]
fn steps_of_an_app_work_in_every_kind_of_generation() {
    let engine = Model::new(None).open(None);
    let prompt = [1, 2, 3];
    let free = text(engine.session().unwrap().generate(&prompt, &options(30)));
    let options = letters(usize::MAX, 30);
    let letters_only = |text: &str| !text.is_empty() && text.chars().all(|c| "ab".contains(c));
    let generated = text(engine.session().unwrap().generate(&prompt, &options));
    assert!(letters_only(&generated) && !letters_only(&free));
    // Options are used as often as one likes: every generation has forks of its own.
    assert_eq!(
        text(engine.session().unwrap().generate(&prompt, &options)),
        generated
    );
    let stream = engine
        .session()
        .unwrap()
        .into_stream(prompt.to_vec(), options.clone());
    assert_eq!(text(stream), generated);

    let replied = text(engine.chat().unwrap().reply("abc", &options));
    assert!(letters_only(&replied));
    let stream = engine.chat().unwrap().into_stream("abc", options.clone());
    assert_eq!(text(stream), replied);
    let request = ChatRequest {
        messages: vec![Message::user("abc")],
        options,
    };
    assert_eq!(
        text(engine.chat().unwrap().answer(request.clone())),
        replied
    );
    let (routed, reason) = route(&engine, request);
    assert_eq!((routed, reason), (replied, FinishReason::MaxTokens));
}

fn route(engine: &Engine, chat: ChatRequest) -> (String, FinishReason) {
    let local = LocalModel::new(engine).unwrap();
    let router = Router::new(Policy::default()).with_backend(Arc::new(local));
    let request = RouteRequest {
        prompt: Prompt::Chat(chat.messages),
        options: chat.options,
        on_device_only: false,
    };
    let mut text = String::new();
    let answer = router.answer(&request, &Cancellation::new(), &mut |piece, _| {
        text.push_str(&piece.text);
        ControlFlow::Continue(())
    });
    (text, answer.unwrap().finish_reason)
}

#[test]
fn a_generation_that_may_choose_nothing_ends_and_says_so() {
    let engine = Model::new(None).open(None);
    for temperature in [0.0, 1.0] {
        let mut options = letters(5, 30);
        options.sampling.temperature = temperature;
        let mut session = engine.session().unwrap();
        let mut generation = session.generate(&[1, 2, 3], &options);
        let tokens: Vec<_> = generation.by_ref().map(|token| token.unwrap().id).collect();
        assert_eq!(tokens.len(), 5);
        assert!(tokens.iter().all(Option::is_some));
        assert_eq!(
            generation.finish_reason(),
            Some(FinishReason::NothingAllowed)
        );
        assert!(generation.next().is_none());
        assert_eq!(session.len(), 3 + 5);
    }
    let mut stream = engine
        .session()
        .unwrap()
        .into_stream(vec![1], letters(5, 30));
    assert_eq!(stream.by_ref().count(), 5);
    assert_eq!(stream.finish_reason(), Some(FinishReason::NothingAllowed));

    // Text that was held back is given out, as at every end.
    let free = text(engine.session().unwrap().generate(&[1], &letters(5, 5)));
    let holding = letters(5, 30).with_stop_strings([format!("{free}x")]);
    let mut session = engine.session().unwrap();
    let items: Vec<_> = session
        .generate(&[1], &holding)
        .map(|token| token.unwrap())
        .collect();
    let last = items.last().unwrap();
    assert_eq!((last.id, last.text.as_str()), (None, free.as_str()));
}

#[test]
fn a_reply_that_may_choose_nothing_joins_the_conversation_with_its_text_or_not_at_all() {
    let engine = Model::new(None).open(None);
    let mut chat = engine.chat().unwrap();
    let mut reply = chat.reply("abc", &letters(0, 30));
    assert!(reply.next().is_none());
    assert_eq!(reply.finish_reason(), Some(FinishReason::NothingAllowed));
    drop(reply);
    assert!(chat.messages().is_empty());

    let replied = text(chat.reply("abc", &letters(5, 30)));
    assert_eq!(
        chat.messages(),
        [Message::user("abc"), Message::assistant(replied)]
    );
    let request = |left| ChatRequest {
        messages: vec![Message::user("abc")],
        options: letters(left, 30),
    };
    assert_eq!(
        route(&engine, request(0)),
        (String::new(), FinishReason::NothingAllowed)
    );
    assert_eq!(route(&engine, request(5)).1, FinishReason::NothingAllowed);
}

/// Writes one text for another, wherever it comes up.
#[derive(Clone)]
struct Replace {
    from: &'static str,
    to: &'static str,
    held: String,
}

impl Replace {
    fn new(from: &'static str, to: &'static str) -> Replace {
        Replace {
            from,
            to,
            held: String::new(),
        }
    }
}

impl TextFilter for Replace {
    fn push(&mut self, piece: &str) -> FilteredText {
        let held = std::mem::take(&mut self.held) + piece;
        let mut certain = held.replace(self.from, self.to);
        let undecided = (1..self.from.len())
            .rev()
            .find(|len| certain.ends_with(&self.from[..*len]));
        self.held = certain.split_off(certain.len() - undecided.unwrap_or(0));
        FilteredText::goes_on(certain)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn fork(&self) -> Box<dyn TextFilter> {
        Box::new(self.clone())
    }
}

/// Holds everything back.
#[derive(Clone, Default)]
struct Hold(String);

impl TextFilter for Hold {
    fn push(&mut self, piece: &str) -> FilteredText {
        self.0.push_str(piece);
        FilteredText::default()
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    fn fork(&self) -> Box<dyn TextFilter> {
        Box::new(self.clone())
    }
}

/// Ends the text before a character.
#[derive(Clone)]
struct EndBefore(char);

impl TextFilter for EndBefore {
    fn push(&mut self, piece: &str) -> FilteredText {
        match piece.split_once(self.0) {
            Some((before, _)) => FilteredText::ends(before),
            None => FilteredText::goes_on(piece),
        }
    }

    fn fork(&self) -> Box<dyn TextFilter> {
        Box::new(self.clone())
    }
}

/// What is generated, the text of the last item, and why it ended.
fn ended(engine: &Engine, options: &GenerateOptions) -> (String, String, Option<FinishReason>) {
    let mut session = engine.session().unwrap();
    let mut generation = session.generate(&[1, 2, 3], options);
    let texts: Vec<String> = generation
        .by_ref()
        .map(|token| token.unwrap().text)
        .collect();
    let last = texts.last().cloned().unwrap_or_default();
    (texts.concat(), last, generation.finish_reason())
}

#[test]
fn a_filter_changes_holds_back_and_ends_what_is_given_out() {
    let engine = Model::new(None).open(None);
    let (free, _, _) = ended(&engine, &options(60));
    assert!(free.contains("ab") && free.contains('c'));

    let replacing = options(60).with_filter(Replace::new("ab", "tree"));
    let (replaced, _, reason) = ended(&engine, &replacing);
    assert_eq!(replaced, free.replace("ab", "tree"));
    assert_eq!(reason, Some(FinishReason::MaxTokens));

    let holding = options(60).with_filter(Hold::default());
    let (held, last, reason) = ended(&engine, &holding);
    assert_eq!((&held, &last), (&free, &free));
    assert_eq!(reason, Some(FinishReason::MaxTokens));

    let ending = options(60).with_filter(EndBefore('c'));
    let (until, _, reason) = ended(&engine, &ending);
    assert_eq!(until, free.split('c').next().unwrap());
    assert_eq!(reason, Some(FinishReason::Filtered));
    let stream = engine.session().unwrap().into_stream(vec![1, 2, 3], ending);
    assert_eq!(text(stream), until);
}

#[test]
fn stop_strings_are_looked_for_in_what_filters_let_through() {
    let engine = Model::new(None).open(None);
    let (free, _, _) = ended(&engine, &options(60));
    let stopping =
        |filter: GenerateOptions, stop: &str| filter.with_stop_strings([stop.to_owned()]);
    let replacing = || options(60).with_filter(Replace::new("ab", "tree"));
    let (stopped, _, reason) = ended(&engine, &stopping(replacing(), "tree"));
    assert_eq!(stopped, free.split("ab").next().unwrap());
    assert_eq!(reason, Some(FinishReason::StopString));
    // It never comes out, so it never ends the text.
    let (whole, _, reason) = ended(&engine, &stopping(replacing(), "ab"));
    assert_eq!(whole, free.replace("ab", "tree"));
    assert_eq!(reason, Some(FinishReason::MaxTokens));
    // All of it comes out at once, at the end.
    let holding = options(60).with_filter(Hold::default());
    let (stopped, _, reason) = ended(&engine, &stopping(holding, "ab"));
    assert_eq!(stopped, free.split("ab").next().unwrap());
    assert_eq!(reason, Some(FinishReason::StopString));
}

#[test]
fn a_filtered_reply_joins_the_conversation_as_it_was_given_out() {
    let engine = Model::new(None).open(None);
    for filter in [EndBefore('c'), EndBefore('a')] {
        let mut chat = engine.chat().unwrap();
        let filtered = options(60).with_filter(filter);
        let mut reply = chat.reply("abc", &filtered);
        let replied = text(reply.by_ref());
        assert_eq!(reply.finish_reason(), Some(FinishReason::Filtered));
        drop(reply);
        assert_eq!(
            chat.messages(),
            [Message::user("abc"), Message::assistant(replied.clone())]
        );
        let request = ChatRequest {
            messages: vec![Message::user("abc")],
            options: filtered.clone(),
        };
        assert_eq!(
            route(&engine, request),
            (replied.clone(), FinishReason::Filtered)
        );
        let stream = engine.chat().unwrap().into_stream("abc", filtered);
        assert_eq!(text(stream), replied);
    }
}

#[test]
fn options_show_none_of_what_filters_hold() {
    let filtered = || options(1).with_filter(Replace::new("secret", "tree"));
    let options = filtered();
    assert_eq!(options, options.clone());
    assert_ne!(options, filtered());
    assert!(!format!("{options:?}").contains("secret"));
    assert!(!format!("{:?}", FilteredText::ends("secret")).contains("secret"));
}

//! Chats, streams, cancellation and the context's end.
#![allow(clippy::unwrap_used)]

mod synthetic;

use niwaki::bundle::GenerationDefaults;
use niwaki::route::{LocalChat, Policy, RouteRequest, Router};
use niwaki::{
    Cancellation, Candidates, Chat, ChatRequest, ChatTemplate, ContextEnd, Engine, FilteredText,
    FinishReason, GenerateError, GenerateOptions, LogitsFor, Message, OpenOptions, Role, Sampling,
    SamplingStep, SessionError, Stage, TemplateError, TextFilter,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use synthetic::{Decoder, Random, TOKENIZER};

/// Every letter of it is in the tokenizer's vocabulary.
const TEMPLATE: &str = "{% for message in messages %}{{ {'system': 'ab', 'user': 'c', 'assistant': 'a'}[message.role] \
     }}{{ message.content }}{% endfor %}{% if add_generation_prompt %}bb{% endif %}";

struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new(window: Option<usize>) -> Model {
        Model::with(Decoder {
            vocabulary: 8,
            window,
            ..Decoder::TINY
        })
    }

    fn with(decoder: Decoder) -> Model {
        let folder = tempfile::tempdir().unwrap();
        decoder.write_with(&Model::path(folder.path()), 1, |writer| {
            writer.set_tokenizer(TOKENIZER.as_bytes().to_vec());
            writer.set_chat_template(TEMPLATE);
        });
        Model { folder }
    }

    fn path(folder: &Path) -> std::path::PathBuf {
        folder.join("model.niwaki")
    }

    fn open(&self, context_tokens: Option<usize>) -> Engine {
        let options = OpenOptions {
            threads: 1,
            context_tokens,
            ..OpenOptions::default()
        };
        Engine::open(Model::path(self.folder.path()), &options).unwrap()
    }
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        sampling: Sampling {
            temperature: 1.0,
            seed: 5,
            ..Sampling::GREEDY
        },
        ..GenerateOptions::default()
    }
}

fn text(items: impl Iterator<Item = Result<niwaki::Token, GenerateError>>) -> String {
    items.map(|token| token.unwrap().text).collect()
}

#[test]
fn a_reply_that_reuses_earlier_turns_is_that_of_a_fresh_session_to_the_bit() {
    for window in [None, Some(64)] {
        let engine = Model::new(window).open(None);
        let mut chat = engine.chat().unwrap();
        chat.set_messages(vec![Message::system("abcab")]);
        for turn in 0..4 {
            let question = "abc".repeat(turn * 9 + 1);
            let mut reply = chat.reply(question, &options(12));
            let (prompt, reused) = (reply.prompt_tokens(), reply.reused_tokens());
            let replied = text(reply.by_ref());
            assert_eq!(reply.finish_reason(), Some(FinishReason::MaxTokens));
            drop(reply);
            assert!(reused < prompt);
            assert_eq!(reused > 0, turn > 0, "turn {turn}");

            let (_, before) = chat.messages().split_last().unwrap();
            let mut fresh = engine.chat().unwrap();
            let mut answer = fresh.answer(ChatRequest {
                messages: before.to_vec(),
                options: options(12),
            });
            assert_eq!(answer.reused_tokens(), 0);
            assert_eq!(text(answer.by_ref()), replied);
            drop(answer);
            assert_eq!(chat.messages(), fresh.messages());
            assert_eq!(chat.session().tokens(), fresh.session().tokens());
        }
    }
}

#[test]
fn the_logits_after_a_kept_prefix_have_the_bits_of_a_fresh_session() {
    let engine = Model::with(Decoder::TINY).open(None);
    let mut random = Random(3);
    let first = random.tokens(90, 50);
    let second: Vec<u32> = first[..70]
        .iter()
        .copied()
        .chain(random.tokens(40, 50))
        .collect();
    let mut session = engine.session().unwrap();
    session.append(&first, LogitsFor::LastToken).unwrap();
    let kept = session.keep_common_prefix(&second).unwrap();
    assert!(kept >= 70);
    let reused = session
        .append(&second[kept..], LogitsFor::LastToken)
        .unwrap();
    let fresh = engine
        .session()
        .unwrap()
        .append(&second, LogitsFor::LastToken)
        .unwrap();
    assert_eq!(reused, fresh);
    assert_eq!(session.tokens(), second);
}

#[test]
fn a_cancelled_prefill_ends_before_the_next_operator_and_leaves_the_context_as_it_was() {
    for window in [None, Some(64)] {
        let decoder = Decoder {
            context_tokens: 4000,
            window,
            ..Decoder::TINY
        };
        let engine = Model::with(decoder).open(None);
        let mut random = Random(7);
        let (first, long, after) = (
            random.tokens(100, 50),
            random.tokens(3000, 50),
            random.tokens(5, 50),
        );
        let mut expected = engine.session().unwrap();
        expected.append(&first, LogitsFor::LastToken).unwrap();
        let expected = expected.append(&after, LogitsFor::LastToken).unwrap();

        let whole = Cancellation::new();
        engine
            .session()
            .unwrap()
            .append_cancellable(&long, LogitsFor::LastToken, &whole)
            .unwrap();

        let mut session = engine.session().unwrap();
        session.append(&first, LogitsFor::LastToken).unwrap();
        let cancellation = Cancellation::new();
        // Past the first run of tokens, so that there is something to take back.
        let begin = whole.operators_begun() / 2;
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while cancellation.operators_begun() < begin {
                    std::thread::yield_now();
                }
                cancellation.cancel();
                cancellation.operators_begun()
            });
            let error = session
                .append_cancellable(&long, LogitsFor::LastToken, &cancellation)
                .unwrap_err();
            assert!(matches!(error, SessionError::Cancelled), "{error}");
            watcher.join().unwrap()
        });
        assert!(cancellation.operators_begun() <= seen + 1);
        assert!(cancellation.operators_begun() < whole.operators_begun());
        assert_eq!(session.tokens(), first);
        let logits = session.append(&after, LogitsFor::LastToken).unwrap();
        assert_eq!(logits, expected);
    }
}

#[test]
fn work_under_a_cancelled_cancellation_does_not_begin() {
    let engine = Model::new(None).open(None);
    let mut session = engine.session().unwrap();
    let cancellation = Cancellation::new();
    cancellation.cancel();
    let mut generation = session
        .generate(&[1, 2], &options(9))
        .with_cancellation(cancellation.clone());
    assert!(generation.next().is_none());
    assert_eq!(generation.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(cancellation.operators_begun(), 0);
    assert!(session.is_empty());
}

#[test]
fn a_reply_that_ends_early_keeps_what_was_given_out_or_leaves_no_trace() {
    let engine = Model::new(None).open(None);
    let mut chat = engine.chat().unwrap();
    let mut reply = chat.reply("abc", &options(50));
    reply.cancellation().cancel();
    assert!(reply.next().is_none());
    drop(reply);
    assert!(chat.messages().is_empty());

    let mut reply = chat.reply("abc", &options(50));
    let mut given_out = String::new();
    while given_out.is_empty() {
        given_out.push_str(&reply.next().unwrap().unwrap().text);
    }
    reply.cancellation().cancel();
    assert!(reply.next().is_none());
    assert_eq!(reply.finish_reason(), Some(FinishReason::Cancelled));
    drop(reply);
    assert_eq!(
        chat.messages(),
        [Message::user("abc"), Message::assistant(given_out)]
    );
}

#[test]
fn dropping_a_stream_ends_its_work_and_a_stream_gives_its_session_back() {
    let engine = Model::new(None).open(None);
    let free = text(engine.session().unwrap().generate(&[1, 2, 3], &options(30)));
    let mut stream = engine
        .session()
        .unwrap()
        .into_stream(vec![1, 2, 3], options(30));
    assert_eq!(text(stream.by_ref()), free);
    assert_eq!(stream.finish_reason(), Some(FinishReason::MaxTokens));
    let session = stream.into_inner().unwrap();
    assert_eq!(session.len(), 3 + 29);

    // More than may wait to be read: the work cannot end by itself.
    let mut stream = engine.session().unwrap().into_stream(vec![1], options(300));
    stream.next().unwrap().unwrap();
    let cancellation = stream.cancellation().clone();
    drop(stream);
    assert!(cancellation.is_cancelled());
    let stopped = engine.session().unwrap().into_stream(vec![1], options(300));
    let session = stopped.into_inner().unwrap();
    assert!(session.len() < 300);
}

#[test]
fn a_chat_streams_from_a_thread_and_comes_back_with_the_reply() {
    let engine = Model::new(None).open(None);
    let mut stream = engine.chat().unwrap().into_stream("abc", options(20));
    let replied = text(stream.by_ref());
    let chat = stream.into_inner().unwrap();
    assert_eq!(
        chat.messages(),
        [Message::user("abc"), Message::assistant(replied)]
    );
}

#[test]
fn sessions_of_one_engine_run_at_once_without_touching_each_other() {
    let engine = Model::new(None).open(None);
    let prompts: Vec<Vec<u32>> = (1..5)
        .map(|token| vec![token; token as usize * 3])
        .collect();
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| text(engine.session().unwrap().generate(prompt, &options(40))))
        .collect();
    let streams: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            engine
                .session()
                .unwrap()
                .into_stream(prompt.clone(), options(40))
        })
        .collect();
    let together: Vec<String> = streams.into_iter().map(text).collect();
    assert_eq!(together, alone);
}

#[test]
fn stop_strings_end_a_generation_wherever_they_come_up() {
    let engine = Model::new(None).open(None);
    let free = text(engine.session().unwrap().generate(&[1, 2, 3], &options(60)));
    // Three characters: across tokens.
    let start = free.char_indices().nth(20).unwrap().0;
    let stop: String = free[start..].chars().take(3).collect();
    let stopping = GenerateOptions {
        stop_strings: vec![stop.clone()],
        ..options(60)
    };
    let mut session = engine.session().unwrap();
    let mut generation = session.generate(&[1, 2, 3], &stopping);
    let stopped = text(generation.by_ref());
    assert_eq!(generation.finish_reason(), Some(FinishReason::StopString));
    assert_eq!(stopped, free[..free.find(&stop).unwrap()]);

    let never = GenerateOptions {
        stop_strings: vec![format!("{free}x")],
        ..options(60)
    };
    let held = text(engine.session().unwrap().generate(&[1, 2, 3], &never));
    assert_eq!(
        held, free,
        "text that was held back to the end is given out"
    );
}

#[test]
fn the_end_of_the_context_is_the_callers_choice() {
    let model = Model::new(None);
    let engine = model.open(Some(16));
    let with = |context_end, max_new_tokens| GenerateOptions {
        context_end,
        ..options(max_new_tokens)
    };
    let run = |prompt: &[u32], options: &GenerateOptions| {
        let mut session = engine.session().unwrap();
        let mut generation = session.generate(prompt, options);
        let ids: Vec<_> = generation
            .by_ref()
            .map(|token| token.map(|token| token.id))
            .collect();
        let reason = generation.finish_reason();
        (ids, reason, session.len())
    };
    let (ids, reason, _) = run(&[1; 10], &with(ContextEnd::Stop, 50));
    assert_eq!((ids.len(), reason), (7, Some(FinishReason::ContextFull)));

    let (ids, reason, len) = run(&[1; 10], &with(ContextEnd::Refuse, 8));
    assert!(matches!(
        ids[..],
        [Err(GenerateError::DoesNotFit {
            prompt_tokens: 10,
            max_new_tokens: 8,
            room_tokens: 16
        })]
    ));
    assert_eq!((reason, len), (Some(FinishReason::Failed), 0));
    let (ids, reason, _) = run(&[1; 10], &with(ContextEnd::Refuse, 7));
    assert_eq!((ids.len(), reason), (7, Some(FinishReason::MaxTokens)));

    let (ids, reason, len) = run(&[1; 40], &with(ContextEnd::ForgetOldest, 50));
    assert_eq!((ids.len(), reason), (50, Some(FinishReason::MaxTokens)));
    assert!(len <= 16);
}

#[test]
fn going_on_after_forgetting_is_as_if_the_kept_tokens_were_the_prompt() {
    let engine = Model::new(None).open(Some(16));
    let greedy = GenerateOptions {
        max_new_tokens: 1,
        context_end: ContextEnd::ForgetOldest,
        ..GenerateOptions::default()
    };
    let prompt = Random(4).tokens(20, 8);
    let next = |prompt: &[u32]| {
        let mut session = engine.session().unwrap();
        let token = session.generate(prompt, &greedy).next().unwrap();
        token.unwrap().id
    };
    assert_eq!(next(&prompt), next(&prompt[12..]));
}

#[test]
fn a_chat_forgets_whole_turns_and_never_the_system() {
    let engine = Model::new(None).open(Some(60));
    let mut chat = engine.chat().unwrap();
    chat.set_messages(vec![Message::system("abab")]);
    let forgetting = GenerateOptions {
        context_end: ContextEnd::ForgetOldest,
        ..options(8)
    };
    for _ in 0..10 {
        let mut reply = chat.reply("abcabc", &forgetting);
        assert!(reply.prompt_tokens() <= 60 - 7);
        for token in reply.by_ref() {
            token.unwrap();
        }
        assert_eq!(reply.finish_reason(), Some(FinishReason::MaxTokens));
    }
    assert_eq!(chat.messages().len(), 21, "the history stays whole");
    assert!(chat.forgotten_messages() > 0);
    assert_eq!(chat.messages()[0].role, Role::System);
    let engine = chat.session().engine();
    let system = engine
        .tokenizer()
        .unwrap()
        .encode("abababc", false)
        .unwrap();
    assert_eq!(chat.session().tokens()[..system.len()], system);
}

#[test]
fn the_template_s_end_token_ends_a_reply() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = Decoder {
        vocabulary: 8,
        ..Decoder::TINY
    };
    let defaults = GenerationDefaults {
        special_tokens: [("eos_token".to_owned(), "c".to_owned())].into(),
        ..GenerationDefaults::default()
    };
    decoder.write_with(&Model::path(folder.path()), 1, |writer| {
        writer.set_tokenizer(TOKENIZER.as_bytes().to_vec());
        writer.set_chat_template(TEMPLATE);
        writer.set_generation_defaults(&defaults).unwrap();
    });
    let engine = Model { folder }.open(None);
    let mut chat = engine.chat().unwrap();
    let mut reply = chat.reply("abc", &options(300));
    let replied = text(reply.by_ref());
    assert_eq!(reply.finish_reason(), Some(FinishReason::EndOfText));
    assert!(!replied.contains('c'));
}

#[test]
fn a_model_without_a_template_says_so_and_takes_one() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = Decoder {
        vocabulary: 8,
        ..Decoder::TINY
    };
    decoder.write_with(&Model::path(folder.path()), 1, |writer| {
        writer.set_tokenizer(TOKENIZER.as_bytes().to_vec());
    });
    let engine = Model { folder }.open(None);
    assert!(matches!(
        engine.chat().unwrap_err(),
        GenerateError::Template(TemplateError::Missing)
    ));
    let template = ChatTemplate::new(TEMPLATE, [("bos_token", "a")]).unwrap();
    let mut chat = Chat::new(engine.session().unwrap(), template);
    assert!(!text(chat.reply("abc", &options(20))).is_empty());
}

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
    let mut options = options(max_new_tokens);
    options.steps.push(Only {
        tokens: &[1, 2, 4],
        left,
    });
    options
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
    let local = LocalChat::new(engine).unwrap();
    let router = Router::new(Policy::default()).with_local(Arc::new(local));
    let request = RouteRequest {
        chat,
        on_device_only: false,
    };
    let mut text = String::new();
    let answer = router.answer(&request, &Cancellation::new(), &mut |piece, _| {
        text.push_str(piece);
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
    let mut holding = letters(5, 30);
    holding.stop_strings = vec![format!("{free}x")];
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

fn with_filter(filter: impl TextFilter + 'static, mut options: GenerateOptions) -> GenerateOptions {
    options.filters.push(filter);
    options
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

    let replacing = with_filter(Replace::new("ab", "tree"), options(60));
    let (replaced, _, reason) = ended(&engine, &replacing);
    assert_eq!(replaced, free.replace("ab", "tree"));
    assert_eq!(reason, Some(FinishReason::MaxTokens));

    let holding = with_filter(Hold::default(), options(60));
    let (held, last, reason) = ended(&engine, &holding);
    assert_eq!((&held, &last), (&free, &free));
    assert_eq!(reason, Some(FinishReason::MaxTokens));

    let ending = with_filter(EndBefore('c'), options(60));
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
    let stopping = |filter: GenerateOptions, stop: &str| GenerateOptions {
        stop_strings: vec![stop.to_owned()],
        ..filter
    };
    let replacing = || with_filter(Replace::new("ab", "tree"), options(60));
    let (stopped, _, reason) = ended(&engine, &stopping(replacing(), "tree"));
    assert_eq!(stopped, free.split("ab").next().unwrap());
    assert_eq!(reason, Some(FinishReason::StopString));
    // It never comes out, so it never ends the text.
    let (whole, _, reason) = ended(&engine, &stopping(replacing(), "ab"));
    assert_eq!(whole, free.replace("ab", "tree"));
    assert_eq!(reason, Some(FinishReason::MaxTokens));
    // All of it comes out at once, at the end.
    let holding = with_filter(Hold::default(), options(60));
    let (stopped, _, reason) = ended(&engine, &stopping(holding, "ab"));
    assert_eq!(stopped, free.split("ab").next().unwrap());
    assert_eq!(reason, Some(FinishReason::StopString));
}

#[test]
fn a_filtered_reply_joins_the_conversation_as_it_was_given_out() {
    let engine = Model::new(None).open(None);
    for filter in [EndBefore('c'), EndBefore('a')] {
        let mut chat = engine.chat().unwrap();
        let filtered = with_filter(filter, options(60));
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
    let options = with_filter(Replace::new("secret", "tree"), options(1));
    assert_eq!(options, options.clone());
    assert_ne!(
        options,
        with_filter(Replace::new("secret", "tree"), options.clone())
    );
    assert!(!format!("{options:?}").contains("secret"));
    assert!(!format!("{:?}", FilteredText::ends("secret")).contains("secret"));
}

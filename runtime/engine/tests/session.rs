//! Chats, streams, cancellation and the context's end.
#![allow(clippy::unwrap_used)]

mod letters;
#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use letters::{Model, TEMPLATE, options, text};
use niwaki::bundle::GenerationDefaults;
use niwaki::{
    Cancellation, Chat, ChatRequest, ChatTemplate, ContextEnd, FinishReason, GenerateError,
    GenerateOptions, LogitsFor, Message, Role, SessionError, TemplateError,
};
use synthetic::{Decoder, Random, TOKENIZER};

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
    let stopping = options(60).with_stop_strings([stop.clone()]);
    let mut session = engine.session().unwrap();
    let mut generation = session.generate(&[1, 2, 3], &stopping);
    let stopped = text(generation.by_ref());
    assert_eq!(generation.finish_reason(), Some(FinishReason::StopString));
    assert_eq!(stopped, free[..free.find(&stop).unwrap()]);

    let never = options(60).with_stop_strings([format!("{free}x")]);
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
    let with = |context_end, max_new_tokens| options(max_new_tokens).with_context_end(context_end);
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
    let greedy = GenerateOptions::default()
        .with_max_new_tokens(1)
        .with_context_end(ContextEnd::ForgetOldest);
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
    let forgetting = options(8).with_context_end(ContextEnd::ForgetOldest);
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

#[test]
fn a_generation_ends_when_its_time_is_over() {
    let engine = Model::new(None).open(None);
    let mut session = engine.session().unwrap();
    let none = options(60).with_max_time(std::time::Duration::ZERO);
    let mut generation = session.generate(&[1, 2, 3], &none);
    assert!(generation.next().is_none());
    assert_eq!(generation.finish_reason(), Some(FinishReason::MaxTime));
    drop(generation);
    assert!(session.is_empty(), "nothing was computed");
    let long = options(5).with_max_time(std::time::Duration::MAX);
    let mut generation = session.generate(&[1, 2, 3], &long);
    assert_eq!(generation.by_ref().count(), 5);
    assert_eq!(generation.finish_reason(), Some(FinishReason::MaxTokens));
}

#[test]
fn tokens_come_with_log_probabilities_where_they_are_asked_for() {
    let engine = Model::new(None).open(None);
    let tokens = |options: &GenerateOptions| -> Vec<niwaki::Token> {
        let mut session = engine.session().unwrap();
        let generation = session.generate(&[1, 2, 3], options);
        generation.map(Result::unwrap).collect()
    };
    let plain = tokens(&options(20));
    assert!(plain.iter().all(|token| token.log_probs.is_none()));
    for with in tokens(&options(20).with_log_probs(3)).iter().zip(&plain) {
        let (token, plain) = with;
        assert_eq!((token.id, &token.text), (plain.id, &plain.text));
        let log_probs = token.log_probs.as_ref().unwrap();
        assert!(log_probs.best.len() == 3 && log_probs.chosen <= log_probs.best[0].1);
        assert!(log_probs.best[0].1 < 0.0);
    }
}

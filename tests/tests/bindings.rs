//! The bindings behave as the apps behind them expect.
#![allow(clippy::unwrap_used)]

#[path = "../../runtime/bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki_bindings::{
    BundleSource, ContextEnd, Engine, Finish, FinishReason, GenerateOptions, KvElement, LogLevel,
    LogSink, Message, NiwakiError, OpenOptions, Role, Sampling, TokenStream, memory_plan,
    set_log_sink,
};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synthetic::Decoder;

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

fn open_options() -> OpenOptions {
    OpenOptions {
        threads: 1,
        memory_limit_bytes: None,
        context_tokens: None,
        kv: None,
        verify_weights: true,
    }
}

fn generate_options(max_new_tokens: u32) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        sampling: Some(Sampling {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            banned_tokens: Vec::new(),
            forced_tokens: Vec::new(),
            no_repeat_ngram: None,
            logit_bias: Vec::new(),
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry: None,
            top_n_sigma: None,
            typical_p: None,
            xtc: None,
            mirostat: None,
        }),
        seed: 3,
        max_time_ms: None,
        log_probs: None,
        stop_tokens: Vec::new(),
        stop_strings: Vec::new(),
        context_end: ContextEnd::Stop,
    }
}

fn endless() -> GenerateOptions {
    GenerateOptions {
        context_end: ContextEnd::ForgetOldest,
        ..generate_options(u32::MAX)
    }
}

/// As many tokens as the tokenizer has.
const DECODER: Decoder = Decoder {
    vocabulary: 8,
    ..Decoder::TINY
};

fn write_model(folder: &Path) -> BundleSource {
    write_decoder(folder, DECODER)
}

fn write_decoder(folder: &Path, decoder: Decoder) -> BundleSource {
    let path = folder.join("model.niwaki");
    decoder.write_with(&path, 1, |writer| {
        writer.set_tokenizer(synthetic::TOKENIZER.as_bytes().to_vec());
        writer.set_chat_template(TEMPLATE);
    });
    BundleSource::Path {
        path: path.to_str().unwrap().to_owned(),
    }
}

fn engine() -> Arc<Engine> {
    let folder = tempfile::tempdir().unwrap();
    Engine::open(write_model(folder.path()), open_options()).unwrap()
}

/// Everything that comes, and how it ended.
fn read(stream: &TokenStream) -> (Vec<String>, Finish) {
    let mut texts = Vec::new();
    while let Some(token) = stream.next().unwrap() {
        texts.push(token.text);
    }
    (texts, stream.finish().unwrap())
}

#[test]
fn text_comes_token_by_token_and_the_same_for_a_seed() {
    let engine = engine();
    assert_eq!(
        (engine.name().as_str(), engine.context_tokens()),
        ("synthetic", 400)
    );
    let run = || {
        let session = engine.session().unwrap();
        let stream = session
            .generate("abc".into(), generate_options(30))
            .unwrap();
        let (texts, finish) = read(&stream);
        assert_eq!(
            (finish.reason, finish.new_tokens),
            (FinishReason::MaxTokens, 30)
        );
        assert_eq!(session.len_tokens().unwrap(), finish.prompt_tokens + 29);
        texts
    };
    let texts = run();
    assert!(texts.len() >= 30);
    assert_eq!(texts, run());
}

#[test]
fn a_stream_is_one_token_ahead_of_its_reader_and_no_more() {
    let session = engine().session().unwrap();
    let begun = |options: GenerateOptions, read: usize| {
        session.reset().unwrap();
        let stream = session.generate("abc".into(), options).unwrap();
        for _ in 0..read {
            stream.next().unwrap().unwrap();
        }
        stream
    };
    let two = begun(generate_options(2), 2);
    assert!(two.next().unwrap().is_none());
    let stream = begun(endless(), 1);
    while stream.operators_begun() < two.operators_begun() {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(stream.operators_begun(), two.operators_begun());
}

#[test]
fn a_cancelled_stream_ends_and_its_session_goes_on() {
    let session = engine().session().unwrap();
    for dropped in [false, true] {
        let stream = session.generate("abc".into(), endless()).unwrap();
        stream.next().unwrap().unwrap();
        assert!(matches!(session.len_tokens(), Err(NiwakiError::Busy)));
        assert!(matches!(
            session.generate("a".into(), endless()),
            Err(NiwakiError::Busy)
        ));
        if dropped {
            drop(stream);
        } else {
            stream.cancel();
            assert!(stream.next().unwrap().is_none());
            assert_eq!(stream.finish().unwrap().reason, FinishReason::Cancelled);
        }
        session.reset().unwrap();
    }
    let stream = session.generate("abc".into(), generate_options(3)).unwrap();
    assert_eq!(read(&stream).1.reason, FinishReason::MaxTokens);
}

#[test]
fn a_reader_that_waits_is_woken_by_a_cancellation() {
    let session = engine().session().unwrap();
    for _ in 0..20 {
        session.reset().unwrap();
        let stream = session.generate("abc".repeat(100), endless()).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| while stream.next().unwrap().is_some() {});
            stream.cancel();
            reader.join().unwrap();
        });
        assert_eq!(stream.finish().unwrap().reason, FinishReason::Cancelled);
    }
}

#[test]
fn a_conversation_keeps_its_turns() {
    let engine = engine();
    assert!(engine.can_chat());
    let chat = engine.chat().unwrap();
    let system = Message {
        role: Role::System,
        content: "ab".into(),
    };
    chat.set_messages(vec![system]).unwrap();
    let (texts, first) = read(&chat.reply("abc".into(), generate_options(5)).unwrap());
    let (_, second) = read(&chat.reply("ca".into(), generate_options(5)).unwrap());
    assert_eq!(first.reused_tokens, 0);
    assert!(second.reused_tokens > 0, "{second:?}");
    let messages = chat.messages().unwrap();
    let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
    use Role::{Assistant, System, User};
    assert_eq!(roles, [System, User, Assistant, User, Assistant]);
    assert_eq!(messages[2].content, texts.concat());
}

/// Names of the fields of a struct.
fn fields(debugged: &impl std::fmt::Debug) -> Vec<String> {
    let text = format!("{debugged:#?}");
    let names = text.lines().filter_map(|line| {
        let field = line.strip_prefix("    ")?;
        let (name, _) = field.split_once(": ")?;
        (!name.starts_with(' ')).then(|| name.to_owned())
    });
    names.collect()
}

#[test]
fn an_option_of_the_engine_is_one_of_apps_or_left_out_on_purpose() {
    let generate = generate_options(1);
    let sampling = generate.sampling.clone().unwrap();
    for (engine, apps, left_out) in [
        (
            fields(&niwaki::OpenOptions::default()),
            fields(&open_options()),
            // Apps choose whether the weights are compared, and never the instruction set.
            &["verify", "isa"][..],
        ),
        (
            fields(&niwaki::GenerateOptions::default()),
            fields(&generate),
            // Steps and filters are code that runs for every token: what of them apps get will be options of their own.
            // A duration is milliseconds there.
            &["max_time", "steps", "filters"],
        ),
        (
            fields(&niwaki::Sampling::default()),
            fields(&sampling),
            // Beside it: it also holds where the model's own defaults choose.
            &["seed"],
        ),
    ] {
        assert!(engine.len() > left_out.len(), "{engine:?}");
        for option in &engine {
            assert!(
                apps.contains(option) != left_out.contains(&option.as_str()),
                "{option}: of the engine {engine:?}, of apps {apps:?}"
            );
        }
    }
}

#[test]
fn keys_and_values_are_kept_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    // Heads without padding.
    let decoder = Decoder {
        head_dim: 32,
        ..DECODER
    };
    let source = write_decoder(folder.path(), decoder);
    let bytes = |kv: Option<KvElement>| {
        let options = OpenOptions {
            kv,
            ..open_options()
        };
        let engine = Engine::open(source.clone(), options).unwrap();
        let session = engine.session().unwrap();
        read(&session.generate("abc".into(), generate_options(5)).unwrap());
        let plan = engine.memory_plan();
        let kept = plan
            .parts
            .iter()
            .find(|part| part.name == "keys and values");
        kept.unwrap().size_bytes
    };
    let [i8, f16, f32] =
        [KvElement::I8, KvElement::F16, KvElement::F32].map(|element| bytes(Some(element)));
    assert!(i8 < f16 && f16 < f32, "{i8} {f16} {f32}");
    assert_eq!(bytes(None), f16);
}

#[test]
fn more_threads_than_the_system_could_start_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = write_model(folder.path());
    for threads in [257, 100_000, u32::MAX] {
        let options = OpenOptions {
            threads,
            ..open_options()
        };
        let errors = [
            Engine::open(source.clone(), options.clone()).err(),
            memory_plan(source.clone(), options).err(),
        ];
        for error in errors {
            let Some(NiwakiError::InvalidArgument { details }) = error else {
                unreachable!("{error:?}")
            };
            assert!(
                details.contains(&threads.to_string()) && details.contains("256"),
                "{details}"
            );
        }
    }
}

#[test]
fn a_bundle_inside_another_file_opens_from_a_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let BundleSource::Path { path } = write_model(folder.path()) else {
        unreachable!()
    };
    let bundle = std::fs::read(&path).unwrap();
    let package = folder.path().join("package");
    let mut file = File::create(&package).unwrap();
    file.write_all(&[7; 4096]).unwrap();
    file.write_all(&bundle).unwrap();
    file.write_all(&[9; 99]).unwrap();
    let file = File::open(&package).unwrap();
    let source = BundleSource::Descriptor {
        fd: file.as_raw_fd(),
        offset: 4096,
        length: Some(bundle.len() as u64),
    };
    let plan = memory_plan(source.clone(), open_options()).unwrap();
    let engine = Engine::open(source.clone(), open_options()).unwrap();
    drop(file);
    assert_eq!(engine.memory_plan(), plan);
    let session = engine.session().unwrap();
    read(&session.generate("abc".into(), generate_options(3)).unwrap());
    // Closed by now: its number is not open, or belongs to something else that is no bundle.
    assert!(Engine::open(source, open_options()).is_err());
}

#[test]
fn errors_come_in_the_kinds_an_app_can_act_on() {
    let folder = tempfile::tempdir().unwrap();
    let source = write_model(folder.path());
    let open = |source: &BundleSource, options: OpenOptions| {
        Engine::open(source.clone(), options).err().unwrap()
    };
    let path = |name: &str| BundleSource::Path {
        path: folder.path().join(name).to_str().unwrap().to_owned(),
    };
    let descriptor = |fd| BundleSource::Descriptor {
        fd,
        offset: 0,
        length: None,
    };
    std::fs::write(folder.path().join("text"), "once upon a time").unwrap();
    let missing = open(&path("missing"), open_options());
    assert!(matches!(missing, NiwakiError::FileNotFound { .. }));
    let damaged = open(&path("text"), open_options());
    assert!(matches!(damaged, NiwakiError::InvalidBundle { .. }));
    let none = open(&descriptor(-1), open_options());
    assert!(matches!(none, NiwakiError::InvalidArgument { .. }));
    let closed = open(&descriptor(9999), open_options());
    assert!(matches!(closed, NiwakiError::FileUnreadable { .. }));

    let plan = memory_plan(source.clone(), open_options()).unwrap();
    let anonymous = plan.parts.iter().filter(|part| !part.file_backed);
    assert_eq!(
        plan.anonymous_bytes,
        anonymous.map(|part| part.size_bytes).sum::<u64>()
    );
    let limited = OpenOptions {
        memory_limit_bytes: Some(1000),
        ..open_options()
    };
    let NiwakiError::NotEnoughMemory {
        needed_bytes,
        limit_bytes,
        ..
    } = open(&source, limited)
    else {
        unreachable!()
    };
    assert_eq!(
        (needed_bytes, limit_bytes),
        (Some(plan.anonymous_bytes), Some(1000))
    );

    let short = OpenOptions {
        context_tokens: Some(3),
        ..open_options()
    };
    let short = Engine::open(source, short).unwrap();
    let fails = |text: &str, options: GenerateOptions| {
        let session = short.session().unwrap();
        let stream = session.generate(text.into(), options).unwrap();
        let error = stream.next().err().unwrap();
        assert!(stream.next().unwrap().is_none());
        assert_eq!(stream.finish().unwrap().reason, FinishReason::Failed);
        error
    };
    let full = fails("abcabcabc", generate_options(1));
    assert!(
        matches!(
            full,
            NiwakiError::ContextFull {
                context_tokens: 3,
                ..
            }
        ),
        "{full}"
    );
    let nonsense = GenerateOptions {
        sampling: Some(Sampling {
            temperature: -1.0,
            ..generate_options(1).sampling.unwrap()
        }),
        ..generate_options(1)
    };
    let error = fails("a", nonsense);
    assert!(
        matches!(error, NiwakiError::InvalidArgument { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("temperature -1"),
        "the cause is told: {error}"
    );
}

#[test]
fn log_lines_come_to_the_sink_without_the_users_text() {
    struct Lines(Mutex<Vec<String>>);
    impl LogSink for Lines {
        fn log(&self, level: LogLevel, target: String, message: String) -> Result<(), NiwakiError> {
            let line = format!("{level:?} {target} {message}");
            self.0.lock().unwrap().push(line);
            Ok(())
        }
    }
    let lines = Arc::new(Lines(Mutex::default()));
    set_log_sink(Some(lines.clone()), LogLevel::Trace).unwrap();
    let session = engine().session().unwrap();
    read(
        &session
            .generate("abcabc".into(), generate_options(3))
            .unwrap(),
    );
    set_log_sink(None, LogLevel::Trace).unwrap();
    let taken = lines.0.lock().unwrap().clone();
    assert!(
        taken
            .iter()
            .any(|line| line.starts_with("Info niwaki") && line.contains("opened")),
        "{taken:?}"
    );
    assert!(!taken.iter().any(|line| line.contains("abcabc")));
}

//! What an engine promises: the same bits however tokens come, bounded memory, errors instead of panics.
#![allow(clippy::unwrap_used)]

#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki::{
    Engine, FinishReason, GenerateError, GenerateOptions, Isa, KvElement, LogitsFor, OpenError,
    OpenOptions, Sampling, Session, SessionError,
};
use niwaki_kernels::{Element, MatrixFormat, ScaleType};
use std::path::{Path, PathBuf};
use std::time::Duration;
use synthetic::{Decoder, Random};

struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new(decoder: &Decoder) -> Model {
        let model = Model {
            folder: tempfile::tempdir().unwrap(),
        };
        decoder.write_with(&model.path(), 7, |writer| {
            writer.set_tokenizer(synthetic::TOKENIZER.as_bytes().to_vec());
        });
        model
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.niwaki")
    }

    fn open(&self, options: &OpenOptions) -> Engine {
        Engine::open(self.path(), options).unwrap()
    }

    fn session(&self, options: &OpenOptions) -> Session {
        self.open(options).session().unwrap()
    }
}

fn threads(threads: usize) -> OpenOptions {
    OpenOptions::default().with_threads(threads)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits of every token, fed in parts of the given sizes, the last size again and again.
fn feed(session: &mut Session, tokens: &[u32], sizes: &[usize]) -> Vec<u32> {
    let mut sizes = sizes.iter().copied();
    let (mut size, mut rest, mut all) = (1, tokens, Vec::new());
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size).min(rest.len());
        let (part, after) = rest.split_at(size);
        all.extend(bits(
            session
                .append(part, LogitsFor::EveryToken)
                .unwrap()
                .as_slice(),
        ));
        rest = after;
    }
    all
}

/// Every kind of weight the format knows.
fn formats() -> Vec<MatrixFormat> {
    let int4 = MatrixFormat::INT4;
    vec![
        int4,
        MatrixFormat::INT8,
        MatrixFormat::CODEBOOK4,
        MatrixFormat::F16,
        MatrixFormat::F32,
        MatrixFormat { block: 16, ..int4 },
        MatrixFormat {
            scale: ScaleType::F32,
            ..int4
        },
        MatrixFormat {
            element: Element::Int8,
            block: 16,
            scale: ScaleType::F32,
            ..int4
        },
    ]
}

#[test]
fn one_by_one_in_chunks_and_in_one_batch_the_logits_are_the_same_bits() {
    for format in formats() {
        for (window, refined) in [(None, 0), (Some(70), 0), (None, 2)] {
            let model = Model::new(&Decoder {
                format,
                window,
                refined,
                ..Decoder::TINY
            });
            // More than two runs of the engine's own.
            let tokens = Random(3).tokens(390, 50);
            let expected = feed(&mut model.session(&threads(1)), &tokens, &[390]);
            assert_eq!(expected.len(), 390 * 50);
            for sizes in [&[1][..], &[63, 1, 64, 2, 65, 5, 100], &[7]] {
                let found = feed(&mut model.session(&threads(1)), &tokens, sizes);
                assert!(
                    found == expected,
                    "{format:?} window {window:?} refined {refined} sizes {sizes:?}"
                );
            }
        }
    }
}

/// The bundle at `from` with its matrices as plain floats.
fn as_floats(from: &Path, to: &Path) {
    use niwaki_bundle::{Bundle, Verify};
    let bundle = Bundle::open(from, Verify::Full).unwrap();
    let mut writer = niwaki_bundle::write::BundleWriter::create(to).unwrap();
    for (id, entry) in bundle.weight_table().matrices.iter().enumerate() {
        let matrix = bundle.matrix(id).unwrap();
        let mut values = vec![0.0; matrix.rows() * matrix.cols()];
        for (row, values) in values.chunks_mut(matrix.cols()).enumerate() {
            matrix.read_row(row, values);
        }
        let (format, rows, cols) = (MatrixFormat::F32, matrix.rows(), matrix.cols());
        let bytes = niwaki_kernels::pack_float(format, rows, cols, &values).unwrap();
        let name = &entry.name;
        writer.add_matrix(name, format, rows, cols, &bytes).unwrap();
    }
    for (id, entry) in bundle.weight_table().vectors.iter().enumerate() {
        let values = bundle.vector(id).unwrap();
        writer.add_vector(&entry.name, values).unwrap();
    }
    writer.finish(bundle.manifest(), bundle.graph()).unwrap();
}

#[test]
fn second_terms_of_activations_bring_logits_nearer_to_those_of_float_weights() {
    // Every block of an input is whole, and is refined.
    let decoder = |refined| Decoder {
        hidden: 64,
        head_dim: 16,
        ffn: 96,
        refined,
        ..Decoder::TINY
    };
    let tokens = Random(5).tokens(100, 50);
    let plain = Model::new(&decoder(0));
    let folder = tempfile::tempdir().unwrap();
    let float = folder.path().join("float.niwaki");
    as_floats(&plain.path(), &float);
    let options = threads(1).with_kv(KvElement::F32);
    let logits = |path: &Path| {
        let engine = Engine::open(path, &options).unwrap();
        feed(&mut engine.session().unwrap(), &tokens, &[100])
    };
    let exact = logits(&float);
    let largest_error = |path: &Path| {
        let found = logits(path);
        let errors = found.iter().zip(&exact).map(|(a, b)| {
            let [a, b] = [a, b].map(|bits| f32::from_bits(*bits));
            (a - b).abs()
        });
        errors.fold(0.0, f32::max)
    };
    let refined = Model::new(&decoder(3));
    let (coarse, fine) = (largest_error(&plain.path()), largest_error(&refined.path()));
    assert!(
        fine < coarse / 20.0,
        "{fine} with second terms, {coarse} without"
    );
}

#[test]
fn codes_compute_what_their_values_do_as_floats_within_the_rounding_of_activations() {
    let model = Model::new(&Decoder {
        format: MatrixFormat::CODEBOOK4,
        ..Decoder::TINY
    });
    let floats = model.folder.path().join("floats.niwaki");
    as_floats(&model.path(), &floats);
    let tokens = Random(9).tokens(80, 50);
    let logits = |mut session: Session| -> Vec<f32> {
        let logits = session.append(&tokens, LogitsFor::EveryToken).unwrap();
        logits.as_slice().to_vec()
    };
    let codes = logits(model.session(&threads(1)));
    let floats = Engine::open(&floats, &threads(1)).unwrap();
    let floats = logits(floats.session().unwrap());
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
    let error = squares(&mut codes.iter().zip(&floats).map(|(a, b)| a - b));
    let size = squares(&mut floats.iter().copied());
    let relative = (error / size).sqrt();
    assert!(relative > 0.0 && relative < 0.02, "{relative}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let model = Model::new(&Decoder {
        hidden: 96,
        ffn: 300,
        ..Decoder::TINY
    });
    let tokens = Random(4).tokens(150, 50);
    let expected = feed(&mut model.session(&threads(1)), &tokens, &[150]);
    for count in [2, 3, 8] {
        assert!(
            feed(&mut model.session(&threads(count)), &tokens, &[100, 1]) == expected,
            "{count} threads"
        );
    }
}

#[test]
fn every_instruction_set_of_this_cpu_gives_the_same_bits() {
    for format in formats() {
        let model = Model::new(&Decoder {
            format,
            ..Decoder::TINY
        });
        let tokens = Random(5).tokens(80, 50);
        let run = |isa| {
            let options = OpenOptions::default().with_isa(isa);
            let engine = model.open(&options);
            assert_eq!(engine.isa(), isa);
            feed(&mut engine.session().unwrap(), &tokens, &[77, 1])
        };
        let expected = run(Isa::Scalar);
        for isa in Isa::available() {
            assert!(run(isa) == expected, "{isa:?} {format:?}");
        }
    }
}

#[test]
fn the_last_tokens_logits_are_those_of_every_token() {
    let model = Model::new(&Decoder::TINY);
    let tokens = Random(6).tokens(300, 50);
    let every = model
        .session(&threads(1))
        .append(&tokens, LogitsFor::EveryToken)
        .unwrap();
    let last = model
        .session(&threads(1))
        .append(&tokens, LogitsFor::LastToken)
        .unwrap();
    assert_eq!((every.rows(), last.rows(), last.width()), (300, 1, 50));
    assert_eq!(bits(every.row(299).unwrap()), bits(last.last()));
    assert_eq!(every.row(300), None);
}

#[test]
fn a_profile_accounts_for_the_time_of_appends_and_changes_no_bit() {
    let model = Model::new(&Decoder::TINY);
    let tokens = Random(3).tokens(20, 50);
    let mut plain = model.session(&threads(1));
    let mut profiled = model.session(&threads(1));
    assert_eq!(profiled.take_profile(), None);
    profiled.start_profile();
    assert_eq!(
        feed(&mut profiled, &tokens, &[15, 1]),
        feed(&mut plain, &tokens, &[15, 1])
    );
    let profile = profiled.take_profile().unwrap();
    assert_eq!(profile.appends, 6);
    assert_eq!(profile.nodes.len(), profiled.engine().graph().nodes.len());
    let nodes: Duration = profile.nodes.iter().sum();
    assert!(Duration::ZERO < nodes && nodes <= profile.total);
    assert_eq!(profiled.take_profile(), None);
}

#[test]
fn after_truncating_the_same_tokens_give_the_same_bits() {
    for (window, back) in [(None, 100), (Some(70), 200)] {
        let model = Model::new(&Decoder {
            window,
            ..Decoder::TINY
        });
        let tokens = Random(7).tokens(210, 50);
        let mut session = model.session(&threads(2));
        let expected = feed(&mut session, &tokens, &[210]);
        session.truncate(back).unwrap();
        assert_eq!(session.len(), back);
        let again = feed(&mut session, &tokens[back..], &[3, 50]);
        assert!(again == expected[back * 50..], "window {window:?}");
        // Other tokens in between leave nothing behind.
        session.truncate(back).unwrap();
        feed(&mut session, &Random(8).tokens(5, 50), &[5]);
        session.truncate(back).unwrap();
        assert!(feed(&mut session, &tokens[back..], &[1]) == expected[back * 50..]);
        session.reset().unwrap();
        assert!(session.is_empty());
        assert!(feed(&mut session, &tokens, &[64]) == expected);
    }
}

#[test]
fn going_back_behind_a_window_is_refused_and_changes_nothing() {
    let model = Model::new(&Decoder {
        window: Some(70),
        ..Decoder::TINY
    });
    let tokens = Random(9).tokens(320, 50);
    let mut session = model.session(&threads(1));
    feed(&mut session, &tokens[..310], &[310]);
    assert!(matches!(
        session.truncate(30),
        Err(SessionError::Forgotten {
            len: 310,
            target: 30
        })
    ));
    assert_eq!(session.len(), 310);
    let found = feed(&mut session, &tokens[310..], &[10]);
    let expected = feed(&mut model.session(&threads(1)), &tokens, &[320]);
    assert!(found == expected[310 * 50..]);
}

#[test]
fn sessions_of_one_engine_do_not_meet() {
    let model = Model::new(&Decoder::TINY);
    let engine = model.open(&threads(2));
    let expected: Vec<_> = (0..4)
        .map(|seed| {
            feed(
                &mut engine.session().unwrap(),
                &Random(seed).tokens(90, 50),
                &[90],
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for (seed, expected) in expected.iter().enumerate() {
            let engine = engine.clone();
            scope.spawn(move || {
                let found = feed(
                    &mut engine.session().unwrap(),
                    &Random(seed as u64).tokens(90, 50),
                    &[20, 1],
                );
                assert!(found == *expected);
            });
        }
    });
}

#[test]
fn impossible_tokens_are_refused_and_change_nothing() {
    let model = Model::new(&Decoder::TINY);
    let mut session = model.session(&threads(1).with_context_tokens(10));
    assert!(matches!(
        session.append(&[], LogitsFor::LastToken),
        Err(SessionError::NoTokens)
    ));
    let error = session.append(&[1, 50], LogitsFor::LastToken).unwrap_err();
    assert!(matches!(
        error,
        SessionError::UnknownToken {
            token: 50,
            index: 1,
            vocabulary: 50
        }
    ));
    let error = session.append(&[1; 11], LogitsFor::LastToken).unwrap_err();
    assert!(matches!(
        error,
        SessionError::ContextFull {
            context_tokens: 10,
            len: 0,
            added: 11
        }
    ));
    assert_eq!(session.len(), 0);
    session.append(&[1; 10], LogitsFor::LastToken).unwrap();
    assert!(matches!(
        session.append(&[1], LogitsFor::LastToken),
        Err(SessionError::ContextFull { len: 10, .. })
    ));
}

#[test]
fn keys_and_values_are_f32_only_when_all_weights_are_or_on_request() {
    let int4 = Model::new(&Decoder::TINY);
    assert_eq!(int4.open(&threads(1)).kv_element(), KvElement::F16);
    assert_eq!(
        int4.open(&threads(1).with_kv(KvElement::F32)).kv_element(),
        KvElement::F32
    );
    let float = Model::new(&Decoder {
        format: MatrixFormat::F32,
        ..Decoder::TINY
    });
    assert_eq!(float.open(&threads(1)).kv_element(), KvElement::F32);
}

#[test]
fn a_memory_limit_below_the_plan_fails_with_the_plan() {
    let model = Model::new(&Decoder::TINY);
    let plan = Engine::plan(model.path(), &threads(1)).unwrap();
    assert_eq!(plan, *model.open(&threads(1)).memory_plan());
    assert_eq!(
        plan.file_bytes(),
        std::fs::metadata(model.path()).unwrap().len()
    );
    let needed = plan.anonymous_bytes();
    let open = |limit| Engine::open(model.path(), &threads(1).with_memory_limit_bytes(limit));
    assert!(open(needed).is_ok());
    let error = open(needed - 1).unwrap_err();
    assert!(matches!(&error, OpenError::MemoryLimit { plan: found, .. } if **found == plan));
    assert!(error.to_string().contains("keys and values"), "{error}");
    let shorter = Engine::plan(model.path(), &threads(1).with_context_tokens(64)).unwrap();
    assert!(shorter.anonymous_bytes() < needed);
}

#[test]
fn a_broken_tokenizer_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    Decoder::TINY.write_with(&path, 1, |writer| {
        writer.set_tokenizer(b"{\"model\": 1}".to_vec())
    });
    assert!(matches!(
        Engine::open(&path, &threads(1)),
        Err(OpenError::Tokenizer(_))
    ));
}

fn generate(session: &mut Session, options: &GenerateOptions) -> (Vec<u32>, Option<FinishReason>) {
    let mut generation = session.generate(&[1, 2, 3], options);
    let ids = generation
        .by_ref()
        .filter_map(|token| token.unwrap().id)
        .collect();
    (ids, generation.finish_reason())
}

#[test]
fn greedy_generation_follows_the_best_logit() {
    let model = Model::new(&Decoder::TINY);
    let options = GenerateOptions::default().with_max_new_tokens(20);
    let (ids, reason) = generate(&mut model.session(&threads(1)), &options);
    assert_eq!((ids.len(), reason), (20, Some(FinishReason::MaxTokens)));
    let mut session = model.session(&threads(1));
    let mut input = vec![1, 2, 3];
    for id in &ids {
        let logits = session.append(&input, LogitsFor::LastToken).unwrap();
        let best = logits.last().iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(
            logits.last().iter().position(|logit| *logit == best),
            Some(*id as usize)
        );
        input = vec![*id];
    }
}

#[test]
fn a_seed_gives_the_same_tokens_and_another_seed_others() {
    let model = Model::new(&Decoder::TINY);
    let run = |seed, threads_: usize| {
        let sampling = Sampling::GREEDY
            .with_temperature(1.5)
            .with_top_k(40)
            .with_top_p(0.95)
            .with_seed(seed);
        let options = GenerateOptions::default()
            .with_max_new_tokens(40)
            .with_sampling(sampling);
        generate(&mut model.session(&threads(threads_)), &options).0
    };
    assert_eq!(run(1, 1), run(1, 2));
    assert_ne!(run(1, 1), run(2, 1));
}

#[test]
fn generation_ends_at_stop_tokens_and_at_the_end_of_the_context() {
    let model = Model::new(&Decoder::TINY);
    let options = GenerateOptions::default().with_max_new_tokens(10);
    let (free, _) = generate(&mut model.session(&threads(1)), &options);
    let stop = options.clone().with_stop_tokens([free[4]]);
    let (stopped, reason) = generate(&mut model.session(&threads(1)), &stop);
    let until = free.iter().position(|id| *id == free[4]).unwrap();
    assert_eq!(
        (&stopped[..], reason),
        (&free[..until], Some(FinishReason::StopToken))
    );
    let short = threads(1).with_context_tokens(5);
    let (ids, reason) = generate(&mut model.session(&short), &options);
    // The last token needs no place of its own.
    assert_eq!(
        (&ids[..], reason),
        (&free[..3], Some(FinishReason::ContextFull))
    );
}

#[test]
fn options_without_sense_are_an_error_item() {
    let model = Model::new(&Decoder::TINY);
    for sampling in [
        Sampling::GREEDY.with_temperature(-1.0),
        Sampling::GREEDY.with_temperature(f32::NAN),
        Sampling::GREEDY.with_top_k(0),
        Sampling::GREEDY.with_top_p(0.0),
        Sampling::GREEDY.with_top_p(1.5),
    ] {
        let mut session = model.session(&threads(1));
        let mut generation = session.generate(
            &[1],
            &GenerateOptions::default().with_sampling(sampling.clone()),
        );
        assert!(
            matches!(generation.next(), Some(Err(GenerateError::Sampling(_)))),
            "{sampling:?}"
        );
        assert!(generation.next().is_none());
        assert_eq!(generation.finish_reason(), Some(FinishReason::Failed));
    }
}

#[test]
fn engines_and_sessions_move_between_threads() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Session>();
    is_send::<Engine>();
    is_sync::<Engine>();
}

#[test]
fn the_longest_graph_the_format_allows_opens_in_bounded_time() {
    use niwaki_bundle::graph::{Columns, Graph, Input, InputKind, Node, Op, Output};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let mut writer = niwaki_bundle::write::BundleWriter::create(&path).unwrap();
    let table = niwaki_kernels::pack_float(MatrixFormat::F32, 4, 4, &[1.0; 16]).unwrap();
    let table = writer
        .add_matrix("table", MatrixFormat::F32, 4, 4, &table)
        .unwrap();
    let node = |op, inputs| Node {
        name: "n".into(),
        op,
        inputs,
        width: 4,
    };
    let mut nodes = vec![node(
        Op::Embed {
            input: 0,
            table,
            scale: 1.0,
        },
        vec![],
    )];
    for before in 0..(1 << 16) - 1 {
        // Two inputs each: a naive walk over the paths would never end.
        let input = Columns {
            node: before,
            offset: 0,
            width: 4,
        };
        nodes.push(node(Op::Add { scale: -0.5 }, vec![input, input]));
    }
    let logits = nodes.len() - 1;
    let graph = Graph {
        context_tokens: 8,
        inputs: vec![Input {
            name: "input_ids".into(),
            kind: InputKind::TokenIds { count: 4 },
        }],
        layers: vec![],
        ropes: vec![],
        nodes,
        outputs: vec![Output::logits(logits)],
    };
    writer
        .finish(&niwaki_bundle::Manifest::default(), &graph)
        .unwrap();
    let start = std::time::Instant::now();
    let mut session = Engine::open(&path, &threads(1)).unwrap().session().unwrap();
    session.append(&[1, 2], LogitsFor::EveryToken).unwrap();
    assert!(
        start.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

//! Graphs that are no decoders: other inputs, other outputs, attention over whole sequences.
#![allow(clippy::unwrap_used)]

#[path = "../../bundle/tests/synthetic/mod.rs"]
mod synthetic;

use niwaki::bundle::write::BundleWriter;
use niwaki::graph::{
    Columns, Graph, Input, InputKind, KvLayer, Node, NormKind, Op, Output, Pooling,
};
use niwaki::{BatchStep, Engine, Entries, Isa, LogitsFor, OpenOptions, Outputs, SessionError};
use niwaki_kernels::{MatrixFormat, pack_float};
use synthetic::Random;

const IDS: usize = 11;
const TYPES: usize = 2;
const WIDTH: usize = 24;
const HEADS: usize = 2;

struct Weights {
    writer: BundleWriter,
    random: Random,
}

impl Weights {
    fn matrix(&mut self, rows: usize, cols: usize) -> (usize, Vec<f32>) {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.random.symmetric()).collect();
        let bytes = pack_float(MatrixFormat::F32, rows, cols, &values).unwrap();
        let id = self
            .writer
            .add_matrix("m", MatrixFormat::F32, rows, cols, &bytes)
            .unwrap();
        (id, values)
    }
}

fn open(options: &OpenOptions, graph: impl FnOnce(&mut Weights) -> Graph) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    let mut weights = Weights {
        writer: BundleWriter::create(&path).unwrap(),
        random: Random(3),
    };
    let graph = graph(&mut weights);
    weights.writer.finish(&Default::default(), &graph).unwrap();
    Engine::open(path, options).unwrap()
}

fn ids(name: &str, count: usize) -> Input {
    Input {
        name: name.into(),
        kind: InputKind::TokenIds { count },
    }
}

fn node(op: Op, inputs: &[usize], width: usize) -> Node {
    Node {
        name: "node".into(),
        op,
        inputs: inputs
            .iter()
            .map(|node| Columns {
                node: *node,
                offset: 0,
                width: WIDTH,
            })
            .collect(),
        width,
    }
}

fn output(name: &str, node: usize) -> Output {
    Output {
        name: name.into(),
        node,
    }
}

fn graph(inputs: Vec<Input>, nodes: Vec<Node>, outputs: Vec<Output>) -> Graph {
    Graph {
        context_tokens: 600,
        inputs,
        layers: vec![],
        ropes: vec![],
        nodes,
        outputs,
    }
}

fn norm() -> Op {
    Op::Norm {
        kind: NormKind::Rms,
        epsilon: 1e-5,
        group: WIDTH,
        weight: None,
        bias: None,
    }
}

fn values(outputs: &Outputs, name: &str) -> Vec<f32> {
    outputs.get(name).unwrap().as_slice().to_vec()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_model_cut_in_two_computes_what_it_does_in_one() {
    let whole = |weights: &mut Weights| {
        let table = weights.matrix(IDS, WIDTH).0;
        let (first, second) = (weights.matrix(WIDTH, WIDTH).0, weights.matrix(IDS, WIDTH).0);
        let embed = Op::Embed {
            input: 0,
            table,
            scale: 1.0,
        };
        let linear = |weight| Op::Linear { weight, bias: None };
        vec![
            node(embed, &[], WIDTH),
            node(linear(first), &[0], WIDTH),
            node(norm(), &[1], WIDTH),
            node(linear(second), &[2], IDS),
        ]
    };
    let options = OpenOptions::default();
    let one = open(&options, |weights| {
        let nodes = whole(weights);
        let outputs = vec![output("hidden", 1), Output::logits(3)];
        graph(vec![ids("input_ids", IDS)], nodes, outputs)
    });
    let two = open(&options, |weights| {
        let mut nodes = whole(weights);
        nodes[0] = node(Op::Rows { input: 0 }, &[], WIDTH);
        // What is given takes the place of the first product.
        nodes[1] = node(Op::Scale { factor: 1.0 }, &[0], WIDTH);
        let rows = Input {
            name: "inputs_embeds".into(),
            kind: InputKind::Rows { width: WIDTH },
        };
        graph(
            vec![rows],
            nodes,
            vec![output("given", 0), Output::logits(3)],
        )
    });
    let tokens = Random(9).tokens(200, IDS);
    let mut session = one.session().unwrap();
    let expected = session
        .run(&[Entries::Ids(&tokens)], LogitsFor::EveryToken, None)
        .unwrap();
    let names: Vec<&str> = expected.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["hidden", "logits"]);
    let hidden = values(&expected, "hidden");
    assert_eq!(hidden.len(), 200 * WIDTH);

    let mut session = two.session().unwrap();
    let found = session
        .run(&[Entries::Rows(&hidden)], LogitsFor::EveryToken, None)
        .unwrap();
    assert_eq!(bits(&values(&found, "given")), bits(&hidden));
    assert_eq!(
        bits(&values(&found, "logits")),
        bits(&values(&expected, "logits"))
    );
    assert_eq!((session.len(), session.tokens().len()), (200, 0));
}

#[test]
fn ids_of_tokens_and_of_their_types_are_looked_up_each_in_its_table() {
    let mut tables = Vec::new();
    let engine = open(&OpenOptions::default(), |weights| {
        let (words, values) = weights.matrix(IDS, WIDTH);
        tables.push(values);
        let (types, values) = weights.matrix(TYPES, WIDTH);
        tables.push(values);
        let embed = |input, table| Op::Embed {
            input,
            table,
            scale: 1.0,
        };
        let nodes = vec![
            node(embed(0, words), &[], WIDTH),
            node(embed(1, types), &[], WIDTH),
            node(Op::Add { scale: 1.0 }, &[0, 1], WIDTH),
        ];
        let types = Input {
            name: "token_type_ids".into(),
            kind: InputKind::TokenTypes { count: TYPES },
        };
        graph(
            vec![ids("input_ids", IDS), types],
            nodes,
            vec![output("sum", 2)],
        )
    });
    let mut session = engine.session().unwrap();
    let inputs = [Entries::Ids(&[10, 0, 3]), Entries::Ids(&[0, 1, 1])];
    let found = session
        .run(&inputs, LogitsFor::LastTokens(2), None)
        .unwrap();
    let row = |table: &[f32], id: usize| table[id * WIDTH..(id + 1) * WIDTH].to_vec();
    let expected: Vec<f32> = [(0, 1), (3, 1)]
        .iter()
        .flat_map(|(word, kind)| {
            let (word, kind) = (row(&tables[0], *word), row(&tables[1], *kind));
            word.into_iter()
                .zip(kind)
                .map(|(a, b)| a + b)
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(values(&found, "sum"), expected);

    // Every other way to give them is refused, and changes nothing.
    let refused = |inputs: &[Entries<'_>]| {
        let mut session = engine.session().unwrap();
        let error = session.run(inputs, LogitsFor::LastToken, None).unwrap_err();
        assert!(session.is_empty());
        error
    };
    let one = refused(&[Entries::Ids(&[1])]);
    assert_eq!(
        one.to_string(),
        "1 inputs were given, the model takes input_ids, token_type_ids; give each of them, in this order"
    );
    for inputs in [
        [Entries::Ids(&[1, 2]), Entries::Ids(&[1])],
        [Entries::Ids(&[1]), Entries::Rows(&[1.0; WIDTH])],
    ] {
        let error = refused(&inputs);
        assert!(
            matches!(&error, SessionError::Input { name } if name == "token_type_ids"),
            "{error}"
        );
    }
    let error = refused(&[Entries::Ids(&[1]), Entries::Ids(&[2])]);
    assert!(matches!(
        error,
        SessionError::UnknownToken {
            token: 2,
            vocabulary: 2,
            ..
        }
    ));
    let error = session.append(&[1], LogitsFor::LastToken).unwrap_err();
    assert!(matches!(error, SessionError::NoLogits));
}

/// Queries, keys and values are rows of tables; every row comes out, and pooled ones.
fn encoder(options: &OpenOptions, tables: &mut Vec<Vec<f32>>) -> Engine {
    open(options, |weights| {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let (table, values) = weights.matrix(IDS, WIDTH);
            tables.push(values);
            nodes.push(node(
                Op::Embed {
                    input: 0,
                    table,
                    scale: 1.0,
                },
                &[],
                WIDTH,
            ));
        }
        let attention = Op::Attention {
            layer: 0,
            heads: HEADS,
            scale: 0.4,
            softcap: None,
        };
        nodes.push(node(attention, &[0, 1, 2], WIDTH));
        for pooling in [Pooling::Mean, Pooling::First, Pooling::Last] {
            nodes.push(node(Op::Pool { pooling }, &[3], WIDTH));
        }
        nodes.push(node(norm(), &[4], WIDTH));
        let outputs = [
            ("rows", 3),
            ("mean", 4),
            ("first", 5),
            ("last", 6),
            ("normed", 7),
        ];
        let outputs = outputs.map(|(name, node)| output(name, node)).to_vec();
        let mut graph = graph(vec![ids("input_ids", IDS)], nodes, outputs);
        graph.layers.push(KvLayer {
            causal: false,
            cached: false,
            ..KvLayer::decoder(HEADS, WIDTH / HEADS)
        });
        graph
    })
}

#[test]
fn a_sequence_seen_as_a_whole_attends_to_what_comes_later_too() {
    let mut tables = Vec::new();
    let engine = encoder(&OpenOptions::default(), &mut tables);
    let tokens = Random(5).tokens(150, IDS);
    let mut session = engine.session().unwrap();
    let found = session
        .run(&[Entries::Ids(&tokens)], LogitsFor::EveryToken, None)
        .unwrap();
    let rows = values(&found, "rows");
    let dim = WIDTH / HEADS;
    let part = |table: usize, token: u32, head: usize| {
        let start = token as usize * WIDTH + head * dim;
        tables[table][start..start + dim]
            .iter()
            .map(|x| f64::from(*x))
            .collect::<Vec<f64>>()
    };
    for (index, token) in tokens.iter().enumerate().step_by(29) {
        for head in 0..HEADS {
            let query = part(0, *token, head);
            let weights: Vec<f64> = tokens
                .iter()
                .map(|other| {
                    let key = part(1, *other, head);
                    let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                    (0.4 * dot).exp()
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            for column in 0..dim {
                let value = tokens.iter().zip(&weights);
                let value: f64 = value
                    .map(|(other, weight)| weight * part(2, *other, head)[column])
                    .sum();
                let found = f64::from(rows[index * WIDTH + head * dim + column]);
                assert!(
                    (found - value / sum).abs() < 1e-5,
                    "{found} {}",
                    value / sum
                );
            }
        }
    }

    let row = |index: usize| rows[index * WIDTH..(index + 1) * WIDTH].to_vec();
    assert_eq!(values(&found, "first"), row(0));
    assert_eq!(values(&found, "last"), row(149));
    let mean = values(&found, "mean");
    for (column, mean) in mean.iter().enumerate() {
        let sum: f64 = (0..150).map(|index| f64::from(row(index)[column])).sum();
        assert!((f64::from(*mean) - sum / 150.0).abs() < 1e-6);
    }
    assert_eq!(found.get("normed").unwrap().rows(), 1);
}

#[test]
fn whole_sequences_have_the_same_bits_in_a_batch_on_every_instruction_set_and_keep_nothing() {
    let engine = encoder(&OpenOptions::default(), &mut Vec::new());
    let texts: Vec<Vec<u32>> = [150, 1, 64, 300]
        .map(|count| Random(count as u64).tokens(count, IDS))
        .to_vec();
    let entries: Vec<[Entries<'_>; 1]> = texts.iter().map(|text| [Entries::Ids(text)]).collect();
    let mut sessions: Vec<_> = texts.iter().map(|_| engine.session().unwrap()).collect();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .zip(&entries)
        .map(|(session, inputs)| BatchStep {
            session,
            inputs,
            logits_for: LogitsFor::EveryToken,
        })
        .collect();
    let found = engine.run(&mut steps, None).unwrap();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let options = OpenOptions::default().with_isa(isa).with_threads(threads);
            let alone = encoder(&options, &mut Vec::new());
            for (inputs, found) in entries.iter().zip(&found) {
                let mut session = alone.session().unwrap();
                let expected = session.run(inputs, LogitsFor::EveryToken, None).unwrap();
                for ((name, expected), (_, found)) in expected.iter().zip(found.iter()) {
                    assert_eq!(bits(expected.as_slice()), bits(found.as_slice()), "{name}");
                }
            }
        }
    }
    let session = &mut sessions[0];
    assert_eq!(session.kv_bytes(), 0);
    let more = session.run(&[Entries::Ids(&[1])], LogitsFor::LastToken, None);
    assert!(matches!(more, Err(SessionError::WholeSequencesOnly)));
    session.reset().unwrap();
    session
        .run(&[Entries::Ids(&[1])], LogitsFor::LastToken, None)
        .unwrap();
}

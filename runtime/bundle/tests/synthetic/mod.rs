//! Decoders with random weights, written as bundles: small enough to be made in every test.
// Each test binary uses its own part.
#![allow(dead_code, unreachable_pub)]

use niwaki_bundle::graph::{
    Activation, Columns, Graph, Input, InputKind, KvLayer, Node, NormKind, Op, Output, PairLayout,
    RopeTable,
};
use niwaki_bundle::write::BundleWriter;
use niwaki_bundle::{GenerationDefaults, Manifest};
use niwaki_kernels::{Codebook, MatrixFormat, pack_float, pack_int};
use std::path::Path;

/// Sizes of a Llama-like decoder.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub vocabulary: usize,
    pub context_tokens: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub format: MatrixFormat,
    /// Blocks of inputs of quantized matrices that have second terms, as far as there are whole ones.
    pub refined: usize,
    /// Window of every second layer.
    pub window: Option<usize>,
}

impl Decoder {
    /// Odd sizes, so that padding is exercised.
    pub const TINY: Decoder = Decoder {
        vocabulary: 50,
        context_tokens: 400,
        hidden: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        ffn: 72,
        format: MatrixFormat::INT4,
        refined: 0,
        window: None,
    };

    /// Writes the decoder with weights drawn from `seed` and answers its graph.
    pub fn write(&self, path: &Path, seed: u64) -> Graph {
        self.write_with(path, seed, |_| {})
    }

    /// As [`write`](Self::write), with more sections set by `extra`.
    pub fn write_with(
        &self,
        path: &Path,
        seed: u64,
        extra: impl FnOnce(&mut BundleWriter),
    ) -> Graph {
        let mut writer = BundleWriter::create(path).unwrap();
        let mut random = Random(seed);
        let graph = self.graph(&mut writer, &mut random);
        extra(&mut writer);
        let manifest = Manifest {
            name: "synthetic".into(),
            architecture: "llama".into(),
            ..Manifest::default()
        };
        writer.finish(&manifest, &graph).unwrap();
        graph
    }

    fn graph(&self, writer: &mut BundleWriter, random: &mut Random) -> Graph {
        let mut nodes = Nodes::default();
        let (query, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let embedding = matrix(
            writer,
            random,
            "embedding",
            (self.format, self.refined),
            self.vocabulary,
            self.hidden,
        );
        let mut x = nodes.add(
            "embed",
            Op::Embed {
                input: 0,
                table: embedding,
                scale: 1.0,
            },
            &[],
            self.hidden,
        );
        let mut layers = Vec::new();
        for layer in 0..self.layers {
            let norm = self.norm(writer, random, "norm");
            let normed = nodes.add(
                "attention norm",
                norm,
                &[whole(x, self.hidden)],
                self.hidden,
            );
            let fused = query + 2 * kv;
            let weight = matrix(
                writer,
                random,
                "qkv",
                (self.format, self.refined),
                fused,
                self.hidden,
            );
            let bias = vector(writer, random, "qkv bias", fused, 0.0);
            let qkv = nodes.add(
                "qkv",
                Op::Linear {
                    weight,
                    bias: Some(bias),
                },
                &[whole(normed, self.hidden)],
                fused,
            );
            let rope = Op::Rope {
                table: 0,
                head_dim: self.head_dim,
            };
            let q = nodes.add(
                "q rope",
                rope.clone(),
                &[Columns {
                    node: qkv,
                    offset: 0,
                    width: query,
                }],
                query,
            );
            let k = nodes.add(
                "k rope",
                rope,
                &[Columns {
                    node: qkv,
                    offset: query,
                    width: kv,
                }],
                kv,
            );
            let attention = Op::Attention {
                layer,
                heads: self.heads,
                scale: (self.head_dim as f32).powf(-0.5),
                softcap: None,
            };
            let inputs = [
                whole(q, query),
                whole(k, kv),
                Columns {
                    node: qkv,
                    offset: query + kv,
                    width: kv,
                },
            ];
            let attended = nodes.add("attention", attention, &inputs, query);
            let weight = matrix(
                writer,
                random,
                "output",
                (self.format, self.refined),
                self.hidden,
                query,
            );
            let output = nodes.add(
                "output",
                Op::Linear { weight, bias: None },
                &[whole(attended, query)],
                self.hidden,
            );
            x = nodes.add(
                "residual",
                Op::Add { scale: 1.0 },
                &[whole(x, self.hidden), whole(output, self.hidden)],
                self.hidden,
            );
            let norm = self.norm(writer, random, "ffn norm");
            let normed = nodes.add("ffn norm", norm, &[whole(x, self.hidden)], self.hidden);
            let weight = matrix(
                writer,
                random,
                "gate up",
                (self.format, self.refined),
                2 * self.ffn,
                self.hidden,
            );
            let gate_up = nodes.add(
                "gate up",
                Op::Linear { weight, bias: None },
                &[whole(normed, self.hidden)],
                2 * self.ffn,
            );
            let halves = [
                Columns {
                    node: gate_up,
                    offset: 0,
                    width: self.ffn,
                },
                Columns {
                    node: gate_up,
                    offset: self.ffn,
                    width: self.ffn,
                },
            ];
            let gated = nodes.add(
                "gate",
                Op::Gate {
                    activation: Activation::Silu,
                },
                &halves,
                self.ffn,
            );
            let weight = matrix(
                writer,
                random,
                "down",
                (self.format, self.refined),
                self.hidden,
                self.ffn,
            );
            let down = nodes.add(
                "down",
                Op::Linear { weight, bias: None },
                &[whole(gated, self.ffn)],
                self.hidden,
            );
            x = nodes.add(
                "residual",
                Op::Add { scale: 1.0 },
                &[whole(x, self.hidden), whole(down, self.hidden)],
                self.hidden,
            );
            layers.push(KvLayer {
                window: self.window.filter(|_| layer % 2 == 1),
                ..KvLayer::decoder(self.kv_heads, self.head_dim)
            });
        }
        let last = nodes.add("last", Op::LastRows, &[whole(x, self.hidden)], self.hidden);
        let norm = self.norm(writer, random, "final norm");
        let normed = nodes.add("final norm", norm, &[whole(last, self.hidden)], self.hidden);
        let logits = nodes.add(
            "logits",
            Op::Linear {
                weight: embedding,
                bias: None,
            },
            &[whole(normed, self.hidden)],
            self.vocabulary,
        );
        let pairs = self.head_dim / 2;
        let frequencies = (0..pairs)
            .map(|pair| 10_000f32.powf(-(pair as f32) / pairs as f32))
            .collect();
        Graph {
            context_tokens: self.context_tokens,
            inputs: vec![Input {
                name: "input_ids".into(),
                kind: InputKind::TokenIds {
                    count: self.vocabulary,
                },
            }],
            layers,
            ropes: vec![RopeTable {
                inverse_frequencies: frequencies,
                pairs: PairLayout::Halves,
                magnitude: 1.0,
            }],
            nodes: nodes.0,
            outputs: vec![Output::logits(logits)],
        }
    }

    fn norm(&self, writer: &mut BundleWriter, random: &mut Random, name: &str) -> Op {
        let weight = Some(vector(writer, random, name, self.hidden, 1.0));
        Op::Norm {
            kind: NormKind::Rms,
            epsilon: 1e-5,
            group: self.hidden,
            weight,
            bias: None,
        }
    }
}

/// Bytes of a complete bundle with every kind of section.
pub fn complete_bundle() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.niwaki");
    Decoder::TINY.write_with(&path, 1, |writer| {
        writer.set_tokenizer(TOKENIZER.as_bytes().to_vec());
        writer.set_chat_template("{{ messages }}");
        writer
            .set_generation_defaults(&GenerationDefaults {
                eos_tokens: vec![0],
                ..GenerationDefaults::default()
            })
            .unwrap();
        writer
            .set_quality_report(&serde_json::json!({"perplexity": 12.5}))
            .unwrap();
    });
    std::fs::read(path).unwrap()
}

/// A byte-level tokenizer of a few letters.
pub const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,
"added_tokens":[{"id":0,"content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
"vocab":{"<|end|>":0,"a":1,"b":2,"c":3,"ab":4,"Ġ":5,"Ã":6,"©":7},"merges":[["a","b"]]}}"#;

#[derive(Default)]
struct Nodes(Vec<Node>);

impl Nodes {
    fn add(&mut self, name: &str, op: Op, inputs: &[Columns], width: usize) -> usize {
        self.0.push(Node {
            name: name.into(),
            op,
            inputs: inputs.to_vec(),
            width,
        });
        self.0.len() - 1
    }
}

fn whole(node: usize, width: usize) -> Columns {
    Columns {
        node,
        offset: 0,
        width,
    }
}

fn matrix(
    writer: &mut BundleWriter,
    random: &mut Random,
    name: &str,
    (format, refined): (MatrixFormat, usize),
    rows: usize,
    cols: usize,
) -> usize {
    if format == MatrixFormat::CODEBOOK4 {
        return codes(writer, random, name, refined, rows, cols);
    }
    let bytes = if format.is_quantized() {
        let q: Vec<i8> = (0..rows * cols)
            .map(|_| (random.next() % 15) as i8 - 7)
            .collect();
        // Powers of two are exact in f16.
        let scales: Vec<f32> = (0..rows * cols.div_ceil(format.block))
            .map(|_| 2f32.powi(-5 - (random.next() % 3) as i32))
            .collect();
        pack_int(format, rows, cols, &q, &scales, None).unwrap()
    } else {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.symmetric() * 0.2).collect();
        pack_float(format, rows, cols, &values).unwrap()
    };
    let matrix = writer.begin_matrix(name, format, rows, cols).unwrap();
    let mut matrix = matrix.with_refined(refined_of(format, refined, cols));
    matrix.write(&bytes).unwrap();
    matrix.finish().unwrap()
}

fn refined_of(format: MatrixFormat, refined: usize, cols: usize) -> usize {
    match format.is_quantized() {
        true => refined.min(cols / 32),
        false => 0,
    }
}

/// Values of all sizes, in no order, one of them twice.
pub const CODEBOOK: [i8; 16] = [
    -127, 3, -80, 127, 20, -44, 9, -9, 60, 0, 96, -20, 31, -60, 3, -31,
];

fn codes(
    writer: &mut BundleWriter,
    random: &mut Random,
    name: &str,
    refined: usize,
    rows: usize,
    cols: usize,
) -> usize {
    let format = MatrixFormat::CODEBOOK4;
    let codes: Vec<i8> = (0..rows * cols)
        .map(|_| (random.next() % 16) as i8)
        .collect();
    let scales: Vec<f32> = (0..rows * cols.div_ceil(format.block))
        .map(|_| {
            let scale = 2f32.powi(-9 - (random.next() % 3) as i32);
            if random.next().is_multiple_of(2) {
                scale
            } else {
                -scale
            }
        })
        .collect();
    let bytes = pack_int(format, rows, cols, &codes, &scales, None).unwrap();
    let mut matrix = writer
        .begin_matrix(name, format, rows, cols)
        .unwrap()
        .with_codebook(Codebook::new(CODEBOOK).unwrap())
        .with_refined(refined_of(format, refined, cols));
    matrix.write(&bytes).unwrap();
    matrix.finish().unwrap()
}

fn vector(
    writer: &mut BundleWriter,
    random: &mut Random,
    name: &str,
    len: usize,
    centre: f32,
) -> usize {
    let values: Vec<f32> = (0..len)
        .map(|_| centre + random.symmetric() * 0.1)
        .collect();
    writer.add_vector(name, &values).unwrap()
}

/// SplitMix64 (Steele et al., 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count)
            .map(|_| (self.next() % vocabulary as u64) as u32)
            .collect()
    }
}

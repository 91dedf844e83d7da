//! `niwaki bench`: how fast a model runs here, what memory it takes and where the time goes.

use super::error::CommandError;
use super::model::{self, KeptAs, Kind};
use super::{print, print_json};
use crate::bench::{
    OperatorTime, ResidentMemory, Sample, Test, TestKind, bytes_per_token, measure, operator_times,
    percentile, profile, read_bandwidth, resident_memory,
};
use crate::terminal::{self, Progress, Table};
use clap::Args;
use niwaki::{Engine, Isa, OpenOptions, SessionError};
use serde::Serialize;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Measure the speed and memory of a bundle on this machine.
///
/// Every test computes made-up tokens, once untimed and then repeatedly: prefill takes all of them in one call,
/// decode one per call. Values are medians. Lists are separated by commas; every combination is measured.
#[derive(Args)]
pub(super) struct BenchArgs {
    /// A .niwaki bundle.
    model: PathBuf,
    /// Tokens of a prefill; 0 measures none.
    #[arg(
        short = 'p',
        long,
        value_delimiter = ',',
        default_value = "512",
        value_name = "N,.."
    )]
    prompt: Vec<usize>,
    /// Tokens of a decode; 0 measures none.
    #[arg(
        short = 'n',
        long,
        value_delimiter = ',',
        default_value = "128",
        value_name = "N,.."
    )]
    generate: Vec<usize>,
    /// Tokens in the context before.
    #[arg(
        short = 'd',
        long,
        value_delimiter = ',',
        default_value = "0",
        value_name = "N,.."
    )]
    depth: Vec<usize>,
    /// Threads to compute with; by default as many as there are fast cores.
    #[arg(short = 't', long, value_delimiter = ',', value_name = "N,..")]
    threads: Vec<NonZeroUsize>,
    /// Timed runs of each test.
    #[arg(short = 'r', long, default_value = "5", value_name = "N")]
    repeats: NonZeroUsize,
    /// How keys and values are kept; by default as the engine chooses.
    #[arg(long, value_enum)]
    kv: Option<KeptAs>,
    /// Kernels to use; by default the best this CPU has.
    #[arg(long, value_parser = isa, value_name = "ISA")]
    isa: Option<Isa>,
    /// Also show the time of every kind of operator, and what tract and the session take around them.
    #[arg(long)]
    profile: bool,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a Path,
    name: String,
    weights: String,
    isa: &'static str,
    kv: &'static str,
    repeats: usize,
    engines: Vec<EngineReport>,
}

/// The tests of one engine: one number of threads.
#[derive(Serialize)]
struct EngineReport {
    threads: usize,
    /// From the call that opens the bundle to a session that is ready.
    open_ms: f64,
    /// Bytes per second that as many threads read from memory.
    memory_bandwidth_bytes_per_s: Option<f64>,
    planned_anonymous_bytes: u64,
    tests: Vec<TestReport>,
}

/// The figures of one test.
#[derive(Serialize)]
struct TestReport {
    #[serde(flatten)]
    test: Test,
    tokens_per_s: f64,
    tokens_per_cpu_s: f64,
    ms_per_token_p50: f64,
    ms_per_token_p95: f64,
    /// From the prompt to its next token; of prefill only.
    first_token_ms: Option<f64>,
    /// After the test, with its session alive.
    memory: Option<ResidentMemory>,
    /// Weights, keys and values that a decoded token reads.
    bytes_per_token: Option<u64>,
    /// Share of the measured memory bandwidth, 0 to 1.
    bandwidth_share: Option<f64>,
    profile: Option<Vec<OperatorTime>>,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), CommandError> {
    if model::kind(&args.model)? == Kind::Onnx {
        return Err(CommandError::NotABundle {
            path: args.model.clone(),
        });
    }
    let tests = tests(args);
    let threads: Vec<usize> = match args.threads.as_slice() {
        [] => vec![0],
        threads => threads.iter().map(|threads| threads.get()).collect(),
    };
    let steps = threads.len() * tests.len() * (args.repeats.get() + 1);
    let progress = Progress::steps("measuring", steps);
    let mut engines = Vec::with_capacity(threads.len());
    let mut report = None;
    for threads in threads {
        let (engine, open) = open(args, threads, &tests)?;
        let tests = tests
            .iter()
            .map(|test| run_test(args, &engine, *test, &progress))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| CommandError::Session {
                path: args.model.clone(),
                source,
            })?;
        engines.push(engine_report(&engine, open, tests));
        report.get_or_insert_with(|| Report {
            model: &args.model,
            name: engine.manifest().name.clone(),
            weights: engine.manifest().weights.clone(),
            isa: engine.isa().name(),
            kv: engine.kv_element().name(),
            repeats: args.repeats.get(),
            engines: Vec::new(),
        });
    }
    drop(progress);
    let Some(report) = report.map(|report| Report { engines, ..report }) else {
        return Ok(());
    };
    if args.json {
        print_json(&report)
    } else {
        print(&report.to_string())
    }
}

fn isa(name: &str) -> Result<Isa, String> {
    Isa::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Isa::ALL.iter().map(|isa| isa.name()).collect();
        format!("known are {}", known.join(", "))
    })
}

/// Every combination: at each depth first the prefills, then the decodes.
fn tests(args: &BenchArgs) -> Vec<Test> {
    let of = |kind, lengths: &[usize], depth| -> Vec<Test> {
        let lengths = lengths.iter().filter(|tokens| **tokens > 0);
        lengths
            .map(|&tokens| Test {
                kind,
                tokens,
                depth,
            })
            .collect()
    };
    args.depth
        .iter()
        .flat_map(|&depth| {
            let mut tests = of(TestKind::Prefill, &args.prompt, depth);
            tests.extend(of(TestKind::Decode, &args.generate, depth));
            tests
        })
        .collect()
}

fn open(
    args: &BenchArgs,
    threads: usize,
    tests: &[Test],
) -> Result<(Engine, Duration), CommandError> {
    let longest = tests
        .iter()
        .map(|test| test.depth.saturating_add(test.tokens))
        .max()
        .unwrap_or(1);
    let options = OpenOptions::default()
        .with_threads(threads)
        .with_context_tokens(longest)
        .with_isa(args.isa)
        .with_kv(args.kv.map(KeptAs::element));
    let start = Instant::now();
    let engine = Engine::open(&args.model, &options).map_err(|source| CommandError::Open {
        path: args.model.clone(),
        source,
    })?;
    engine.session().map_err(|source| CommandError::Session {
        path: args.model.clone(),
        source,
    })?;
    let open = start.elapsed();
    let context_tokens = engine.context_tokens();
    if longest > context_tokens {
        return Err(CommandError::TestTooLong {
            path: args.model.clone(),
            tokens: longest,
            context_tokens,
        });
    }
    Ok((engine, open))
}

fn run_test(
    args: &BenchArgs,
    engine: &Engine,
    test: Test,
    progress: &Progress,
) -> Result<TestReport, SessionError> {
    let mut session = engine.session()?;
    let samples = measure(&mut session, test, args.repeats.get(), || progress.step())?;
    let memory = resident_memory();
    let bytes_per_token = match test.kind {
        TestKind::Prefill => None,
        TestKind::Decode => {
            let weights = bytes_per_token(engine.graph(), engine.weights());
            Some(weights.saturating_add(session.kv_bytes() as u64))
        }
    };
    let profile = match args.profile {
        false => None,
        true => {
            let profile = profile(&mut session, test)?;
            let times = operator_times(&profile, engine.graph(), engine.weights(), test.tokens);
            Some(times)
        }
    };
    Ok(TestReport::new(
        test,
        &samples,
        memory,
        bytes_per_token,
        profile,
    ))
}

fn engine_report(engine: &Engine, open: Duration, mut tests: Vec<TestReport>) -> EngineReport {
    let bandwidth = read_bandwidth(engine.threads());
    for test in &mut tests {
        test.bandwidth_share = test
            .bytes_per_token
            .zip(bandwidth)
            .map(|(bytes, bandwidth)| bytes as f64 * test.tokens_per_s / bandwidth);
    }
    EngineReport {
        threads: engine.threads(),
        open_ms: ms(open),
        memory_bandwidth_bytes_per_s: bandwidth,
        planned_anonymous_bytes: engine.memory_plan().anonymous_bytes(),
        tests,
    }
}

impl TestReport {
    fn new(
        test: Test,
        samples: &[Sample],
        memory: Option<ResidentMemory>,
        bytes_per_token: Option<u64>,
        profile: Option<Vec<OperatorTime>>,
    ) -> TestReport {
        let tokens_per_call = match test.kind {
            TestKind::Prefill => test.tokens,
            TestKind::Decode => 1,
        };
        let calls = || {
            samples
                .iter()
                .flat_map(|sample| sample.calls.iter().copied())
        };
        let ms_per_token = |share| ms(percentile(calls(), share)) / tokens_per_call as f64;
        let wall = percentile(samples.iter().map(Sample::wall), 0.5);
        let cpu = percentile(samples.iter().map(|sample| sample.cpu), 0.5);
        TestReport {
            test,
            tokens_per_s: test.tokens as f64 / wall.as_secs_f64(),
            tokens_per_cpu_s: test.tokens as f64 / cpu.as_secs_f64(),
            ms_per_token_p50: ms_per_token(0.5),
            ms_per_token_p95: ms_per_token(0.95),
            first_token_ms: (test.kind == TestKind::Prefill).then(|| ms(wall)),
            memory,
            bytes_per_token,
            bandwidth_share: None,
            profile,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} weights, {} kernels, {} keys and values; medians of {} runs\n",
            self.name, self.weights, self.isa, self.kv, self.repeats
        )?;
        let mut table = Table::new([
            "test",
            "threads",
            "tok/s",
            "tok/CPU-s",
            "ms/token p50",
            "p95",
            "first token",
            "RssAnon",
            "RssFile",
            "bandwidth",
        ]);
        for engine in &self.engines {
            for test in &engine.tests {
                table.row(row(engine, test));
            }
        }
        writeln!(f, "{table}")?;
        for engine in &self.engines {
            let bandwidth = engine
                .memory_bandwidth_bytes_per_s
                .map_or("n/a".to_owned(), |bandwidth| {
                    format!("{:.1} GB/s", bandwidth / 1e9)
                });
            writeln!(
                f,
                "{} threads: opened in {:.1} ms, {} of anonymous memory planned, memory read at {bandwidth}",
                engine.threads,
                engine.open_ms,
                terminal::bytes(engine.planned_anonymous_bytes),
            )?;
        }
        for engine in &self.engines {
            for test in &engine.tests {
                if let Some(profile) = &test.profile {
                    write!(
                        f,
                        "\n{}, {} threads\n{}",
                        title(&test.test),
                        engine.threads,
                        profile_table(profile)
                    )?;
                }
            }
        }
        Ok(())
    }
}

fn title(test: &Test) -> String {
    let kind = match test.kind {
        TestKind::Prefill => "prefill",
        TestKind::Decode => "decode",
    };
    match test.depth {
        0 => format!("{kind} {}", test.tokens),
        depth => format!("{kind} {} at {depth}", test.tokens),
    }
}

fn row(engine: &EngineReport, test: &TestReport) -> [String; 10] {
    let or_none = |text: Option<String>, none: &str| text.unwrap_or_else(|| none.to_owned());
    let memory = |bytes: fn(&ResidentMemory) -> u64| {
        or_none(
            test.memory
                .as_ref()
                .map(|memory| terminal::bytes(bytes(memory))),
            "n/a",
        )
    };
    let bandwidth = match (test.bytes_per_token, test.bandwidth_share) {
        (None, _) => "-".to_owned(),
        (_, None) => "n/a".to_owned(),
        (_, Some(share)) => format!("{:.0} %", share * 100.0),
    };
    [
        title(&test.test),
        engine.threads.to_string(),
        format!("{:.1}", test.tokens_per_s),
        format!("{:.1}", test.tokens_per_cpu_s),
        format!("{:.3}", test.ms_per_token_p50),
        format!("{:.3}", test.ms_per_token_p95),
        or_none(test.first_token_ms.map(|ms| format!("{ms:.1} ms")), "-"),
        memory(|memory| memory.anonymous_bytes),
        memory(|memory| memory.file_bytes),
        bandwidth,
    ]
}

fn profile_table(profile: &[OperatorTime]) -> Table {
    let mut table = Table::new(["operator", "nodes", "us/token", "share"]);
    for time in profile {
        table.row([
            time.operator.clone(),
            match time.nodes {
                0 => "-".to_owned(),
                nodes => nodes.to_string(),
            },
            format!("{:.1}", time.us_per_token),
            format!("{:.1} %", time.share * 100.0),
        ]);
    }
    table
}

//! Feeds a prompt of made-up tokens and decodes greedily: the smallest program that costs what a model costs.
//!
//! `cargo bench --workspace --bench decode -- MODEL.niwaki PROMPT_TOKENS NEW_TOKENS [THREADS [REPEATS [KV]]]`
//!
//! Without REPEATS it runs once, cold, and prints "first token" as soon as it has one: for instruction counts (two
//! runs that differ only in one of the numbers give the cost of one token), memory and the time from process start.
//! With REPEATS it warms up, then runs REPEATS times and prints a line of JSON for each: seconds of wall clock and of
//! CPU time for the prompt, and for all new tokens together.

use cpu_time::ProcessTime;
use niwaki::{
    Engine, KvElement, Logits, LogitsFor, OpenOptions, Sampler, Sampling, Session, Verify,
};
use std::error::Error;
use std::time::Instant;

const USAGE: &str = "decode MODEL.niwaki PROMPT_TOKENS NEW_TOKENS [THREADS [REPEATS [KV]]]";
/// Enough to map all weights and make all buffers.
const WARM_UP_TOKENS: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let model = arguments.next().ok_or(USAGE)?;
    let mut number = || arguments.next().map(|number| number.parse::<usize>());
    let prompt_tokens = number().ok_or(USAGE)??;
    let new_tokens = number().ok_or(USAGE)??;
    let threads = number().transpose()?.unwrap_or(1);
    let repeats = number().transpose()?.unwrap_or(0);
    let kv = match arguments.next() {
        Some(name) => Some(KvElement::from_name(&name).ok_or(USAGE)?),
        None => None,
    };

    let options = OpenOptions::default()
        .with_threads(threads)
        .with_context_tokens(prompt_tokens + new_tokens)
        .with_verify(Verify::Structure)
        .with_kv(kv);
    let engine = Engine::open(model, &options)?;
    let vocabulary = engine.token_ids() as u32;
    let prompt: Vec<u32> = (0..prompt_tokens as u32)
        .map(|index| index.wrapping_mul(7919) % vocabulary)
        .collect();
    let mut session = engine.session()?;
    if repeats == 0 {
        return run(&mut session, &prompt, new_tokens, || {
            println!("first token")
        });
    }
    run(
        &mut session,
        &prompt[..prompt_tokens.min(WARM_UP_TOKENS)],
        0,
        || {},
    )?;
    for _ in 0..repeats {
        session.reset()?;
        let start = Clocks::now();
        let mut first = None;
        run(&mut session, &prompt, new_tokens, || {
            first = Some(Clocks::now());
        })?;
        let first = first.ok_or("no token")?;
        let end = Clocks::now();
        let (prompt_s, prompt_cpu_s) = first.since(&start);
        let (new_s, new_cpu_s) = end.since(&first);
        println!(
            "{{\"prompt_s\": {prompt_s:.9}, \"prompt_cpu_s\": {prompt_cpu_s:.9}, \
             \"new_s\": {new_s:.9}, \"new_cpu_s\": {new_cpu_s:.9}}}"
        );
    }
    Ok(())
}

/// Computes the prompt, tells when its token is there, and decodes.
fn run(
    session: &mut Session,
    prompt: &[u32],
    new_tokens: usize,
    first_token: impl FnOnce(),
) -> Result<(), Box<dyn Error>> {
    let mut sampler = Sampler::new(&Sampling::GREEDY)?;
    let mut most_likely = |logits: Logits| sampler.sample(logits.last());
    let mut token = most_likely(session.append(prompt, LogitsFor::LastToken)?)?;
    first_token();
    for _ in 0..new_tokens {
        token = most_likely(session.append(&[token], LogitsFor::LastToken)?)?;
    }
    Ok(())
}

/// Wall clock and CPU time of this process at one moment.
struct Clocks {
    wall: Instant,
    cpu: ProcessTime,
}

impl Clocks {
    fn now() -> Clocks {
        Clocks {
            wall: Instant::now(),
            cpu: ProcessTime::now(),
        }
    }

    /// Seconds of both since `earlier`.
    fn since(&self, earlier: &Clocks) -> (f64, f64) {
        (
            self.wall.duration_since(earlier.wall).as_secs_f64(),
            self.cpu.duration_since(earlier.cpu).as_secs_f64(),
        )
    }
}

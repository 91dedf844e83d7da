//! Continues a text on a thread of its own, and stops it when the reader has had enough.
//!
//! `cargo run --release --workspace --example stream -- MODEL.niwaki "Once upon a time"`

use niwaki::{Engine, GenerateOptions, OpenOptions};
use std::error::Error;

/// The reader of this example has had enough after so many bytes.
const ENOUGH_BYTES: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "stream MODEL.niwaki PROMPT";
    let (model, prompt) = (
        arguments.next().ok_or(usage)?,
        arguments.next().ok_or(usage)?,
    );
    let engine = Engine::open(model, &OpenOptions::default())?;
    let tokenizer = engine.tokenizer().ok_or("the bundle has no tokenizer")?;
    let prompt = tokenizer.encode(&prompt, true)?;

    let options = GenerateOptions::default().with_max_new_tokens(100_000);
    let mut stream = engine.session()?.into_stream(prompt, options);
    // What a button would hold. Dropping the stream cancels, too.
    let cancellation = stream.cancellation().clone();
    let mut read_bytes = 0;
    for token in stream.by_ref() {
        let text = token?.text;
        print!("{text}");
        read_bytes += text.len();
        if read_bytes > ENOUGH_BYTES {
            cancellation.cancel();
        }
    }
    println!();
    println!("ended: {:?}", stream.finish_reason());
    // The session comes back and can go on from what it holds.
    let session = stream.into_inner().ok_or("the generation panicked")?;
    println!("tokens in the context: {}", session.len());
    Ok(())
}

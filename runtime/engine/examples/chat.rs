//! Talks with a model that was trained for chats: every line of standard input is a turn.
//!
//! `cargo run --release --workspace --example chat -- MODEL.niwaki`

use niwaki::{Engine, FinishReason, GenerateOptions, Message, OpenOptions, Sampling};
use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("chat MODEL.niwaki")?;
    let engine = Engine::open(model, &OpenOptions::default())?;
    let mut chat = engine.chat()?;
    chat.set_messages(vec![Message::system("Answer in a few sentences.")]);
    // As the model's makers recommend, with a seed: the same conversation goes the same way again.
    let sampling = Sampling::from_defaults(engine.generation_defaults(), 7);
    let options = GenerateOptions::default()
        .with_sampling(sampling)
        .with_max_new_tokens(200);
    for line in stdin().lock().lines() {
        let mut reply = chat.reply(line?, &options);
        for token in reply.by_ref() {
            print!("{}", token?.text);
            stdout().flush()?;
        }
        match reply.finish_reason() {
            Some(FinishReason::EndOfText) | None => println!(),
            Some(reason) => println!(" [{reason:?}]"),
        }
    }
    Ok(())
}

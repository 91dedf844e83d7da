//! Answers a question on the device, or from an endpoint where the prompt is too long, and says who answered and why.
//!
//! `cargo run --release --workspace --example route -- MODEL.niwaki "Why is the sky blue?"`
//!
//! With `ENDPOINT` and `ENDPOINT_MODEL` in the environment there is an endpoint too; `ENDPOINT_KEY` is its key.

use niwaki::{Engine, GenerateOptions, Message, OpenOptions};
use niwaki_http::HttpsTransport;
use niwaki_route::{CloudClient, CloudOptions, LocalModel, Policy, Prompt, RouteRequest, Router};
use std::error::Error;
use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Tokens that may wait to be read before the answer waits too.
const WAITING_TOKENS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "route MODEL.niwaki QUESTION";
    let model = arguments.next().ok_or(usage)?;
    let question = arguments.next().ok_or(usage)?;
    let engine = Engine::open(model, &OpenOptions::default())?;
    let policy = Policy {
        max_local_prompt_tokens: Some(500),
        ..Policy::default()
    };
    let mut router = Router::new(policy).with_backend(Arc::new(LocalModel::new(&engine)?));
    if let (Ok(endpoint), Ok(model)) = (std::env::var("ENDPOINT"), std::env::var("ENDPOINT_MODEL"))
    {
        let cloud = CloudClient::new(
            CloudOptions::new(endpoint, model),
            Arc::new(HttpsTransport::new()),
            Arc::new(|| std::env::var("ENDPOINT_KEY").ok()),
        )?;
        router = router.with_backend(Arc::new(cloud));
    }

    let request = RouteRequest {
        prompt: Prompt::Chat(vec![Message::user(question)]),
        options: GenerateOptions::default().with_max_new_tokens(100),
        on_device_only: false,
    };
    let mut answer = Arc::new(router).stream(request, WAITING_TOKENS)?;
    for token in answer.by_ref() {
        print!("{}", token.text);
        stdout().flush()?;
    }
    let decision = answer.into_end()?.decision;
    println!();
    if let (Some(by), Some(reason)) = (decision.answered_by, decision.reason) {
        println!("answered by {by:?}, because of {reason:?}");
    }
    Ok(())
}

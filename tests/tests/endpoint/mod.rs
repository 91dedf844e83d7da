//! An endpoint that does what a test says, down to the byte: good ones and hostile ones.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod asking;
#[path = "../../../runtime/http/tests/server/mod.rs"]
mod server;

pub use server::{Certificate, Connection, HUNG, Server as Endpoint, dead_port, status};

/// The head of a stream that ends with its connection.
pub const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n";

/// An event of a stream: a piece of the answer.
pub fn piece(text: &str) -> String {
    let text = serde_json::to_string(text).unwrap();
    format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\"finish_reason\":null}}]}}\n\n"
    )
}

/// The events that end a stream.
pub fn ending() -> String {
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
     data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n\
     data: [DONE]\n\n"
        .to_owned()
}

/// A whole response that says these pieces.
pub fn good_answer(pieces: &[&str]) -> String {
    let events: String = pieces.iter().map(|text| piece(text)).collect();
    format!("{STREAM_HEAD}{events}{}", ending())
}

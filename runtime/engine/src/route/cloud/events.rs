//! Bytes of an event stream in, what a completion says out.

use super::completions::Chunk;
use super::error::{CloudError, ProtocolProblem, TooLarge};
use sse_core::{SseDecoder, SseEvent};
use std::num::NonZeroUsize;

/// Ends the stream, as an event's data.
const DONE: &str = "[DONE]";

/// Reads the event stream of a completion, however its bytes are cut. Fields, comments, line ends and the byte
/// order mark are as the standard has them (WHATWG HTML, 9.2).
pub(super) struct CompletionEvents {
    decoder: SseDecoder,
    max_event_bytes: NonZeroUsize,
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CompletionEvent {
    Chunk(Chunk),
    Done,
}

impl CompletionEvents {
    pub(super) fn new(max_event_bytes: NonZeroUsize) -> CompletionEvents {
        CompletionEvents {
            decoder: SseDecoder::with_limit(max_event_bytes),
            max_event_bytes,
        }
    }

    /// The next event that is complete with these bytes, which are then used up so far.
    ///
    /// # Errors
    /// [`CloudError::Protocol`], [`CloudError::Reported`] and [`CloudError::TooLarge`].
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
    ) -> Result<Option<CompletionEvent>, CloudError> {
        while let Some(event) = self.decoder.next(bytes) {
            let event = event.map_err(|_| CloudError::TooLarge {
                what: TooLarge::Event,
                limit_bytes: self.max_event_bytes.get(),
            })?;
            let SseEvent::Message(message) = event else {
                continue;
            };
            if message.data.trim() == DONE {
                return Ok(Some(CompletionEvent::Done));
            }
            let chunk = Chunk::parse(&message.data);
            if message.event == "error" && !matches!(chunk, Err(CloudError::Reported { .. })) {
                return Err(CloudError::Reported { code: None });
            }
            return Ok(Some(CompletionEvent::Chunk(chunk?)));
        }
        Ok(None)
    }
}

/// Whether a `Content-Type` is that of event streams.
pub(super) fn check_content_type(value: Option<&str>) -> Result<(), CloudError> {
    let essence = value.and_then(|value| value.split(';').next());
    match essence {
        Some(essence) if essence.trim().eq_ignore_ascii_case("text/event-stream") => Ok(()),
        _ => Err(CloudError::Protocol(ProtocolProblem::NotEventStream)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> Result<(String, bool), CloudError> {
        let mut events = CompletionEvents::new(NonZeroUsize::new(200).unwrap());
        let (mut text, mut done) = (String::new(), false);
        for mut piece in pieces.iter().copied() {
            while let Some(event) = events.next(&mut piece)? {
                match event {
                    CompletionEvent::Chunk(chunk) => text.push_str(&chunk.text),
                    CompletionEvent::Done => done = true,
                }
            }
        }
        Ok((text, done))
    }

    fn chunk(text: &str) -> String {
        format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}")
    }

    #[test]
    fn every_spelling_of_the_standard_is_read() {
        let a = chunk("a");
        let in_lines = chunk("b").replace("[{", "[\ndata:{");
        for (stream, said) in [
            (format!("data: {a}\n\ndata: [DONE]\n\n"), "a"),
            (format!("data:{a}\r\n\r\ndata:[DONE]\r\n\r\n"), "a"),
            (format!("data: {a}\r\rdata: [DONE]\r\r"), "a"),
            (format!("\u{feff}data: {a}\n\ndata: [DONE]\n\n"), "a"),
            (
                format!(": alive\n\n:\n\ndata: {a}\n: still\n\ndata: [DONE]\n\n"),
                "a",
            ),
            (
                format!(
                    "id: 1\nretry: 9\nevent: message\nunknown: x\nunknown\ndata: {a}\n\ndata: [DONE]\n\n"
                ),
                "a",
            ),
            (format!("data: {in_lines}\n\ndata: [DONE]\n\n"), "b"),
        ] {
            assert_eq!(
                read(&[stream.as_bytes()]),
                Ok((said.to_owned(), true)),
                "{stream:?}"
            );
        }
    }

    #[test]
    fn an_event_that_is_not_complete_is_none() {
        let a = chunk("a");
        assert_eq!(
            read(&[format!("data: {a}\n").as_bytes()]),
            Ok((String::new(), false))
        );
    }

    #[test]
    fn an_error_event_is_an_error_whatever_it_holds() {
        for data in ["oops", "{}", &chunk("a"), "{\"error\":{}}"] {
            assert_eq!(
                read(&[format!("event: error\ndata: {data}\n\n").as_bytes()]),
                Err(CloudError::Reported { code: None }),
                "{data}"
            );
        }
    }

    #[test]
    fn an_event_that_grows_too_large_ends_the_stream() {
        let too_large = Err(CloudError::TooLarge {
            what: TooLarge::Event,
            limit_bytes: 200,
        });
        let line = format!("data: {}", "x".repeat(300));
        assert_eq!(read(&[line.as_bytes()]), too_large);
        assert_eq!(read(&["data: x\n".repeat(300).as_bytes()]), too_large);
    }

    proptest! {
        #[test]
        fn cuts_between_bytes_change_nothing(
            texts in proptest::collection::vec("[a-zäöü木]{0,5}", 0..6),
            line_end in proptest::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let mut stream = String::new();
            for text in &texts {
                stream += &format!("data: {}{line_end}{line_end}", chunk(text));
            }
            stream += &format!("data: [DONE]{line_end}{line_end}");
            let mut pieces = Vec::new();
            let mut rest = stream.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(read(&pieces), Ok((texts.concat(), true)));
        }

        #[test]
        fn no_bytes_make_it_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = read(&pieces);
        }
    }
}

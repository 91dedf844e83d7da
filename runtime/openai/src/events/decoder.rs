//! Bytes of an event stream in, what is said out.

use super::{DONE, Event};
use crate::chunk::Chunk;
use crate::error::ReadError;
use sse_core::{SseDecoder, SseEvent};
use std::num::NonZeroUsize;

/// Reads the event stream of an answer, however its bytes are cut. Fields, comments, line ends and the byte order mark
/// are as the standard has them.
pub struct EventDecoder {
    decoder: SseDecoder,
    max_event_bytes: NonZeroUsize,
}

impl EventDecoder {
    /// Takes events of at most so many bytes, and keeps no more.
    pub fn new(max_event_bytes: NonZeroUsize) -> EventDecoder {
        EventDecoder {
            decoder: SseDecoder::with_limit(max_event_bytes),
            max_event_bytes,
        }
    }

    /// The next event that is complete with these bytes, which are then used up so far.
    ///
    /// # Errors
    /// [`ReadError`]; [`ReadError::Reported`] for an event that reports a failure. Nothing is to be read after it.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Event>, ReadError> {
        while let Some(event) = self.decoder.next(bytes) {
            let event = event.map_err(|_| ReadError::TooLarge {
                limit_bytes: self.max_event_bytes.get(),
            })?;
            let SseEvent::Message(message) = event else {
                continue;
            };
            if message.data.trim() == DONE {
                return Ok(Some(Event::Done));
            }
            let chunk = Chunk::read(&message.data);
            if message.event == "error" && !matches!(chunk, Err(ReadError::Reported { .. })) {
                return Err(ReadError::Reported { code: None });
            }
            return Ok(Some(Event::Chunk(chunk?)));
        }
        Ok(None)
    }
}

/// Whether a `Content-Type` is that of event streams.
pub fn is_event_stream(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::super::{KEEP_ALIVE, encode, encode_error};
    use super::*;
    use crate::completion::Usage;
    use crate::error_object::{ErrorBody, ErrorObject};
    use crate::{ChunkChoice, Delta, Role};
    use proptest::prelude::*;

    const MAX_BYTES: usize = 200;

    /// Every event, in the order they come, however the bytes are cut.
    fn events(pieces: &[&[u8]], max_bytes: usize) -> Result<Vec<Event>, ReadError> {
        let mut decoder = EventDecoder::new(NonZeroUsize::new(max_bytes).unwrap());
        let mut events = Vec::new();
        for mut piece in pieces.iter().copied() {
            while let Some(event) = decoder.next(&mut piece)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn read(pieces: &[&[u8]]) -> Result<(String, bool), ReadError> {
        let (mut text, mut done) = (String::new(), false);
        for event in events(pieces, MAX_BYTES)? {
            match event {
                Event::Chunk(chunk) => text.extend(chunk.text()),
                Event::Done => done = true,
            }
        }
        Ok((text, done))
    }

    fn chunk(text: &str) -> String {
        format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}")
    }

    fn cut<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        let mut rest = stream;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
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
                Err(ReadError::Reported { code: None }),
                "{data}"
            );
        }
    }

    #[test]
    fn an_event_that_grows_too_large_ends_the_stream() {
        let too_large = Err(ReadError::TooLarge {
            limit_bytes: MAX_BYTES,
        });
        let line = format!("data: {}", "x".repeat(300));
        assert_eq!(read(&[line.as_bytes()]), too_large);
        assert_eq!(read(&["data: x\n".repeat(300).as_bytes()]), too_large);
    }

    #[test]
    fn a_written_failure_is_read_as_one() {
        let error = encode_error(&ErrorBody {
            error: ErrorObject {
                message: "two\nlines".into(),
                kind: "server_error".into(),
                param: None,
                code: Some("overloaded".into()),
            },
        });
        assert_eq!(
            read(&[error.as_bytes()]),
            Err(ReadError::Reported {
                code: Some("overloaded".into())
            })
        );
    }

    #[test]
    fn streams_are_told_by_their_content_type() {
        for yes in ["text/event-stream", "Text/Event-Stream ; charset=utf-8"] {
            assert!(is_event_stream(yes), "{yes}");
        }
        for no in ["", "text/html", "application/json; text/event-stream"] {
            assert!(!is_event_stream(no), "{no}");
        }
    }

    fn chunks() -> impl Strategy<Value = Chunk> {
        let choice = (
            0u32..3,
            proptest::option::of(proptest::sample::select(vec![Role::Assistant, Role::Tool])),
            proptest::option::of(any::<String>()),
            proptest::option::of("[a-z_]{1,12}"),
        )
            .prop_map(|(index, role, content, finish_reason)| ChunkChoice {
                index,
                delta: Delta { role, content },
                finish_reason,
            });
        (
            any::<String>(),
            any::<u64>(),
            any::<String>(),
            proptest::collection::vec(choice, 0..3),
            proptest::option::of(any::<(u64, u64)>()),
        )
            .prop_map(|(id, created, model, choices, usage)| Chunk {
                id,
                created,
                model,
                choices,
                usage: usage.map(|(prompt, answer)| Usage::new(prompt, answer)),
            })
    }

    proptest! {
        #[test]
        fn what_the_encoder_writes_the_decoder_reads_however_it_is_cut(
            chunks in proptest::collection::vec(chunks(), 0..6),
            cuts in proptest::collection::vec(1usize..90, 1..40),
        ) {
            let mut said: Vec<Event> = chunks.into_iter().map(Event::Chunk).collect();
            said.push(Event::Done);
            let mut stream = String::new();
            for event in &said {
                stream += &encode(event);
                stream += KEEP_ALIVE;
            }
            let pieces = cut(stream.as_bytes(), &cuts);
            prop_assert_eq!(events(&pieces, stream.len()), Ok(said));
        }

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
            let pieces = cut(stream.as_bytes(), &cuts);
            prop_assert_eq!(read(&pieces), Ok((texts.concat(), true)));
        }

        #[test]
        fn no_bytes_make_it_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = read(&pieces);
        }
    }
}

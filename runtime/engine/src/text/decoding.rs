//! How a tokenizer's pieces become bytes, one piece at a time.
//!
//! tokenizer.json describes a chain of decoders over the whole text. Every chain that language models use
//! can be run piece by piece, which is what streaming needs; others are refused by name.

use serde_json::Value;

/// A chain of decoders in the form it takes for one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoding {
    /// Texts in a piece that stand for others: `▁` for a space.
    replacements: Vec<(String, String)>,
    /// Pieces like `<0x0A>` stand for bytes.
    byte_fallback: bool,
    /// Characters stand for bytes, as in GPT-2.
    byte_level: bool,
    /// This many of this character are cut from the start of the text.
    strip_start: Option<(char, usize)>,
    /// This character is cut wherever it is in the first piece (Metaspace).
    strip_first_piece: Option<char>,
    /// Pieces are words with a space between them: a tokenizer without a decoder.
    spaced: bool,
}

impl Decoding {
    /// Reads the `decoder` of a tokenizer.json.
    ///
    /// # Errors
    /// The type of the decoder that cannot be run piece by piece.
    pub(super) fn from_json(decoder: &Value) -> Result<Decoding, String> {
        let mut decoding = Decoding::default();
        match decoder.get("decoders").and_then(Value::as_array) {
            _ if decoder.is_null() => decoding.spaced = true,
            Some(chain) => chain.iter().try_for_each(|step| decoding.add(step))?,
            None => decoding.add(decoder)?,
        }
        Ok(decoding)
    }

    fn add(&mut self, step: &Value) -> Result<(), String> {
        let kind = step
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("of no type");
        let character = |field: &str| {
            step.get(field)
                .and_then(Value::as_str)
                .and_then(|text| text.chars().next())
        };
        let count = |field: &str| step.get(field).and_then(Value::as_u64).unwrap_or(0) as usize;
        let unsupported = || Err(kind.to_owned());
        match kind {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
                match (pattern, step.get("content").and_then(Value::as_str)) {
                    (Some(from), Some(to)) if !from.is_empty() => {
                        self.replacements.push((from.into(), to.into()))
                    }
                    _ => return unsupported(),
                }
            }
            "Strip" => match character("content") {
                Some(content) if count("stop") == 0 && self.strip_start.is_none() => {
                    self.strip_start = Some((content, count("start")));
                }
                _ => return unsupported(),
            },
            "Metaspace" => {
                let Some(replacement) = character("replacement") else {
                    return unsupported();
                };
                if step.get("prepend_scheme").and_then(Value::as_str) != Some("never") {
                    self.strip_first_piece = Some(replacement);
                }
                self.replacements.push((replacement.into(), " ".into()));
            }
            _ => return unsupported(),
        }
        Ok(())
    }

    /// The bytes of a piece. `at_start` counts what may still be cut from the start of the text.
    pub(super) fn piece_bytes(&self, piece: &str, start: &mut TextStart) -> Vec<u8> {
        let first = std::mem::replace(&mut start.first_piece, false);
        if self.byte_fallback
            && let Some(byte) = fallback_byte(piece)
        {
            return vec![byte];
        }
        let mut text = match self.strip_first_piece {
            Some(cut) if first => piece.replace(cut, ""),
            _ => piece.to_owned(),
        };
        for (from, to) in &self.replacements {
            text = text.replace(from.as_str(), to);
        }
        if let Some((cut, most)) = self.strip_start
            && !start.strip_done
        {
            let stripped: usize = text
                .chars()
                .take(most - start.stripped)
                .take_while(|c| *c == cut)
                .count();
            start.stripped += stripped;
            text = text.chars().skip(stripped).collect();
            start.strip_done = !text.is_empty() || start.stripped == most;
        }
        if self.spaced && !first {
            text.insert(0, ' ');
        }
        if self.byte_level
            && let Some(bytes) = text.chars().map(byte_of).collect()
        {
            return bytes;
        }
        text.into_bytes()
    }
}

/// Where in the text the next piece is, as far as decoding cares.
#[derive(Clone, Debug)]
pub(super) struct TextStart {
    first_piece: bool,
    stripped: usize,
    strip_done: bool,
}

impl Default for TextStart {
    fn default() -> Self {
        TextStart {
            first_piece: true,
            stripped: 0,
            strip_done: false,
        }
    }
}

/// The byte of a piece like `<0x0A>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// The byte that a character stands for in GPT-2's alphabet: printable Latin-1 for itself, the other 68
/// bytes in order from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => printable(code).then_some(code as u8),
        code => (0..=0xffu32)
            .filter(|byte| !printable(*byte))
            .nth(code as usize - 0x100)
            .map(|byte| byte as u8),
    }
}

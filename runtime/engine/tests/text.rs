//! Tokenizers turn text into tokens and back, and refuse what they cannot.
#![allow(clippy::unwrap_used)]

use niwaki::{TextError, Tokenizer};
use serde_json::{Value, json};

fn tokenizer(decoder: Value, vocabulary: &[&str]) -> Tokenizer {
    let vocabulary: serde_json::Map<String, Value> = vocabulary
        .iter()
        .enumerate()
        .map(|(id, piece)| ((*piece).to_owned(), json!(id)))
        .collect();
    let json = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "added_tokens": [{"id": 0, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocabulary, "merges": []}
    });
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true})
}

/// Llama 2, Mistral, Phi-3.
fn sentence_piece() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]})
}

fn pieces(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer(true).unwrap();
    tokens
        .iter()
        .map(|token| detokenizer.push(*token))
        .collect()
}

#[test]
fn byte_level_pieces_give_whole_characters() {
    // é is C3 A9, 🌳 is F0 9F 8C B3; a space is Ġ.
    let tokenizer = tokenizer(
        byte_level(),
        &["<end>", "a", "Ã", "©", "Ġb", "ð", "Ł", "Į", "³", "n", "Ċ"],
    );
    assert_eq!(pieces(&tokenizer, &[1, 2, 3, 4]), ["a", "", "é", " b"]);
    assert_eq!(
        pieces(&tokenizer, &[5, 6, 7, 8, 10]),
        ["", "", "", "🌳", "\n"]
    );
    assert_eq!(pieces(&tokenizer, &[2, 1]), ["", "\u{fffd}a"]);
    assert_eq!(tokenizer.decode(&[1, 5, 6], true).unwrap(), "a\u{fffd}");
}

#[test]
fn sentence_pieces_give_spaces_bytes_and_a_text_without_leading_space() {
    let tokenizer = tokenizer(
        sentence_piece(),
        &["<end>", "▁a", "▁▁", "<0xC3>", "<0xA9>", "b", "<0xZZ>"],
    );
    assert_eq!(
        pieces(&tokenizer, &[1, 1, 3, 4, 5]),
        ["a", " a", "", "é", "b"]
    );
    assert_eq!(pieces(&tokenizer, &[2, 1]), [" ", " a"]);
    assert_eq!(pieces(&tokenizer, &[6]), ["<0xZZ>"]);
}

#[test]
fn metaspace_drops_the_first_space_only() {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let tokenizer = tokenizer(metaspace, &["<end>", "▁a", "b"]);
    assert_eq!(pieces(&tokenizer, &[0, 1, 2, 1]), ["", "a", "b", " a"]);
}

#[test]
fn special_tokens_are_text_only_on_request() {
    let tokenizer = tokenizer(byte_level(), &["<end>", "a"]);
    assert_eq!(tokenizer.decode(&[0, 1, 0], true).unwrap(), "a");
    assert_eq!(tokenizer.decode(&[0, 1, 0], false).unwrap(), "<end>a<end>");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(1));
    assert_eq!(tokenizer.token_id("<end>"), Some(0));
}

#[test]
fn tokens_that_do_not_exist_are_no_text() {
    let tokenizer = tokenizer(byte_level(), &["<end>", "a"]);
    assert_eq!(tokenizer.decode(&[1, 77, u32::MAX, 1], true).unwrap(), "aa");
}

#[test]
fn text_is_never_cut_by_settings_for_training() {
    let tokenizer = tokenizer(byte_level(), &["<end>", "a"]);
    assert_eq!(tokenizer.encode("aaaaa", true).unwrap(), [1; 5]);
}

#[test]
fn a_text_begins_with_the_models_token_unless_it_does_already() {
    let plain = tokenizer(byte_level(), &["<end>", "a"]);
    assert_eq!(plain.first_token().unwrap(), None);
    let begun = plain.with_first_token(Some(0));
    assert_eq!(begun.first_token().unwrap(), Some(0));
    assert_eq!(begun.encode("aa", true).unwrap(), [0, 1, 1]);
    assert_eq!(begun.encode("", true).unwrap(), [0]);
    assert_eq!(begun.encode("<end>a", true).unwrap(), [0, 1]);
    assert_eq!(begun.encode("aa", false).unwrap(), [1, 1]);
}

#[test]
fn pieces_are_the_vocabularys_spelling() {
    let tokenizer = tokenizer(byte_level(), &["<end>", "a", "Ġb"]);
    assert_eq!(tokenizer.piece(2).as_deref(), Some("Ġb"));
    assert_eq!(tokenizer.piece(3), None);
}

#[test]
fn decoders_that_need_the_whole_text_are_refused_by_name() {
    for (decoder, name) in [
        (
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            "WordPiece",
        ),
        (
            json!({"type": "Strip", "content": " ", "start": 0, "stop": 2}),
            "Strip",
        ),
        (
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}),
            "Replace",
        ),
    ] {
        let tokenizer = tokenizer(decoder, &["<end>", "a"]);
        let error = tokenizer.detokenizer(true).unwrap_err();
        assert!(
            matches!(&error, TextError::UnsupportedDecoder(kind) if kind == name),
            "{error}"
        );
    }
}

#[test]
fn files_that_are_no_tokenizers_are_refused() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for json in [
        "",
        "{}",
        "null",
        "[1]",
        "{\"model\":{\"type\":\"BPE\"}}",
        "\u{0}",
        deep.as_str(),
    ] {
        assert!(
            matches!(
                Tokenizer::from_bytes(json.as_bytes()),
                Err(TextError::Invalid(_))
            ),
            "{:.40}",
            json
        );
    }
    let long = vec![b' '; (64 << 20) + 1];
    assert!(matches!(
        Tokenizer::from_bytes(&long),
        Err(TextError::TooLarge { .. })
    ));
}

//! Chat templates render as transformers renders them, and hostile ones end.
#![allow(clippy::unwrap_used)]

use niwaki::{ChatTemplate, Message, TemplateError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `tests/chat_templates/expected.json`, which `render.py` beside it writes with jinja2.
#[derive(Deserialize)]
struct Expected {
    special_tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    prompt: Option<String>,
    refused: Option<String>,
}

fn read(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("chat_templates");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    ChatTemplate::new(source, [("eos_token", "</s>")])
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    template(source)?.render(messages, true)
}

#[test]
fn templates_of_known_models_render_as_jinja2_renders_them() {
    let expected: Expected = serde_json::from_str(&read("expected.json")).unwrap();
    assert!(expected.cases.len() > 40);
    for case in expected.cases {
        let name = format!("{} {}", case.template, case.conversation);
        let template =
            ChatTemplate::new(&read(&case.template), expected.special_tokens.clone()).unwrap();
        match template.render(&case.messages, case.add_generation_prompt) {
            Ok(prompt) => assert_eq!(Some(prompt), case.prompt, "{name}"),
            Err(TemplateError::Refused(said)) => assert_eq!(said, case.refused, "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn a_hostile_template_ends_with_a_typed_error() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let doubling = "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}";
    let repeated = "{{ 'a' * 99999999 }}";
    let squared = "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}";
    let printed = "{% set s = 'a' * 1000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}";
    for source in [endless, doubling, repeated, squared, printed] {
        let error = render(source, &[Message::user("hi")]).unwrap_err();
        assert!(matches!(error, TemplateError::TooMuch), "{source}: {error}");
    }
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(render(recursive, &[]).is_err());
    assert!(matches!(
        template(&" ".repeat(2 << 20)),
        Err(TemplateError::TooLong { .. })
    ));
    assert!(matches!(template("{% for"), Err(TemplateError::Syntax(_))));
    // Nothing outside of the conversation is in reach.
    for source in ["{% include '/etc/hostname' %}", "{% import 'os' as os %}"] {
        assert!(render(source, &[]).is_err(), "{source}");
    }
}

#[test]
fn a_long_conversation_is_no_hostile_one() {
    let messages = vec![Message::user("word ".repeat(1000)); 200];
    let prompt = render(&read("smollm2.jinja"), &messages).unwrap();
    assert!(prompt.len() > 1_000_000);
}

#[test]
fn errors_say_what_the_template_says_and_nothing_a_user_wrote() {
    let secret = [Message::user("my secret")];
    let said = |source| render(source, &secret).unwrap_err().to_string();
    let own = said("{{ raise_exception('System role not supported') }}");
    assert!(own.contains("System role not supported"), "{own}");
    for source in [
        "{{ raise_exception('no: ' ~ messages[0].content) }}",
        "{{ messages[0].content | int }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.missing.attribute }}",
        "{{ {}[messages[0].content].x }}",
    ] {
        assert!(!said(source).contains("secret"), "{}", said(source));
    }
}

#[test]
fn the_date_is_there_for_templates_that_want_it() {
    let year = render("{{ strftime_now('%Y') }}", &[]).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024, "{year}");
}

"""Writes expected.json: what jinja2, set up as transformers sets it up for chat templates, renders.

    pip install jinja2 && python tests/chat_templates/render.py
"""
import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = Path(__file__).parent
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = {
    "one": [message("user", "Why is the sky blue?")],
    "turns": [
        message("user", "Hello"),
        message("assistant", "Hi! What can I do?"),
        message("user", "  Who are you?\n"),
    ],
    "system": [
        message("system", " Be brief. "),
        message("user", "Grüße \N{DECIDUOUS TREE} \"quoted\" <tag> & {{ braces }}"),
    ],
    "not alternating": [message("user", "One"), message("user", "Two")],
}


class Generation(Extension):
    """The tags that mark the model's text for training."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


class Refused(Exception):
    pass


def raise_exception(said):
    raise Refused(said)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception

cases = []
for path in sorted(FOLDER.glob("*.jinja")):
    template = environment.from_string(path.read_text())
    for name, messages in CONVERSATIONS.items():
        for add_generation_prompt in (True, False):
            case = {
                "template": path.name,
                "conversation": name,
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
            }
            try:
                case["prompt"] = template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **SPECIAL_TOKENS,
                )
            except Refused as refused:
                case["refused"] = str(refused)
            cases.append(case)

expected = {"special_tokens": SPECIAL_TOKENS, "cases": cases}
(FOLDER / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")

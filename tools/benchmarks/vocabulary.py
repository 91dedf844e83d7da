"""A byte-level BPE vocabulary of the size that a shape has, for engines that read one when they open a model.

    python vocabulary.py SHAPE.json OUT_FOLDER

The tokens are made up, but as many and as long as a trained vocabulary's, with a merge for each: what opening it costs depends
on that. Token 0 is special; the next 256 are the bytes. Needs nothing but Python.
"""

import json
import pathlib
import random
import sys

from shape import Shape

END = "<|endoftext|>"
# Lengths of tokens, whose mean is then between 6 and 7 characters, as SmolLM2's and Qwen2.5's.
COMMONEST, LONGEST = 4, 14


def alphabet():
    """The characters that stand for bytes, as GPT-2 has them: printable ones for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {**{byte: byte for byte in printable}, **{byte: 0x100 + place for place, byte in enumerate(others)}}
    return [chr(codes[byte]) for byte in range(256)]


def vocabulary(size):
    """Tokens in the order of their ids, and the merges that make those after the bytes."""
    draw = random.Random(size)
    tokens, merges = [END, *alphabet()], []
    known = set(tokens)
    # Those that words are made of, by their length.
    words = {1: [token for token in tokens[1:] if token.isascii() and token.isalpha()] + ["Ġ"]}
    while len(tokens) < size:
        length = round(draw.triangular(2, LONGEST, COMMONEST))
        cut = draw.randint(1, length - 1)
        if cut not in words or length - cut not in words:
            continue
        left, right = draw.choice(words[cut]), draw.choice(words[length - cut])
        if left + right in known:
            continue
        known.add(left + right)
        tokens.append(left + right)
        words.setdefault(length, []).append(left + right)
        merges.append((left, right))
    return tokens[:size], merges


def tokenizer_json(size):
    """The vocabulary as the tokenizers library reads it."""
    tokens, merges = vocabulary(size)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False}
    special |= {"normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": {token: place for place, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def write_tokenizer(shape, folder):
    """Writes tokenizer.json into the folder of an export."""
    text = json.dumps(tokenizer_json(shape.vocab), ensure_ascii=False)
    (pathlib.Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write_tokenizer(Shape.load(sys.argv[1]), sys.argv[2])

"""Writes a model of a shape with random weights as GGUF, for llama.cpp.

    python write_gguf.py SHAPE.json OUT.gguf [Q4_0|Q8_0]

All matrices take the named type, the embedding (which is the head, too) included. Needs: gguf, numpy.
"""

import sys

import gguf
import numpy as np

from shape import Shape
from vocabulary import vocabulary


def write(shape, path, kind):
    """Writes the file."""
    writer = gguf.GGUFWriter(path, shape.gguf_arch)
    writer.add_name(shape.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab)
    tokens, merges = vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (shape.vocab - 1)])
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(0)

    def matrix(name, rows, columns):
        values = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name, length, value):
        writer.add_tensor(name, np.full(length, value, np.float32))

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrix("token_embd", shape.vocab, shape.hidden)
    vector("output_norm.weight", shape.hidden, 1)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm.weight", shape.hidden, 1)
        vector(f"{block}.ffn_norm.weight", shape.hidden, 1)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            matrix(f"{block}.attn_{name}", rows, shape.hidden)
            if shape.qkv_bias:
                vector(f"{block}.attn_{name}.bias", rows, 0.01)
        matrix(f"{block}.attn_output", shape.hidden, queries)
        matrix(f"{block}.ffn_gate", shape.ffn, shape.hidden)
        matrix(f"{block}.ffn_up", shape.ffn, shape.hidden)
        matrix(f"{block}.ffn_down", shape.hidden, shape.ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    kind = gguf.GGMLQuantizationType[sys.argv[3] if len(sys.argv) == 4 else "Q4_0"]
    write(Shape.load(sys.argv[1]), sys.argv[2], kind)

"""Writes a small Llama model with random weights as GGUF, with the demo model's tokenizer and shape.

What it says makes no sense; that it is said by llama.cpp, token by token, is what the test needs.

    write_gguf.py EXPORT_FOLDER OUT.gguf
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

export, out = Path(sys.argv[1]), sys.argv[2]
config = json.loads((export / "config.json").read_text())
tokenizer = json.loads((export / "tokenizer.json").read_text())

layers, width, hidden = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
head_size = width // heads

writer = gguf.GGUFWriter(out, "llama")
writer.add_name("random")
writer.add_context_length(2048)
writer.add_embedding_length(width)
writer.add_block_count(layers)
writer.add_feed_forward_length(hidden)
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(head_size)
writer.add_rope_freq_base(config["rope_theta"])
writer.add_vocab_size(config["vocab_size"])

vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
special = {token["id"] for token in tokenizer["added_tokens"]}
types = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(vocabulary))]
merges = tokenizer["model"]["merges"]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(vocabulary)
writer.add_token_types(types)
writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
writer.add_bos_token_id(config["bos_token_id"])
writer.add_eos_token_id(config["eos_token_id"])
writer.add_chat_template("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:")

random = np.random.default_rng(7)


def matrix(name, rows, columns):
    writer.add_tensor(name, (random.standard_normal((rows, columns)) * 0.3).astype(np.float32))


matrix("token_embd.weight", len(vocabulary), width)
writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
for i in range(layers):
    writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(width, np.float32))
    matrix(f"blk.{i}.attn_q.weight", width, width)
    matrix(f"blk.{i}.attn_k.weight", kv_heads * head_size, width)
    matrix(f"blk.{i}.attn_v.weight", kv_heads * head_size, width)
    matrix(f"blk.{i}.attn_output.weight", width, width)
    matrix(f"blk.{i}.ffn_gate.weight", hidden, width)
    matrix(f"blk.{i}.ffn_up.weight", hidden, width)
    matrix(f"blk.{i}.ffn_down.weight", width, hidden)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

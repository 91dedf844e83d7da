"""Writes a model of a shape with random weights as an ONNX export, in the form of onnxruntime-genai's model builder.

    python write_export.py SHAPE.json OUT_FOLDER [fp32|int4]

fp32 holds MatMul, int4 MatMulNBits in blocks of 32; attention is GroupQueryAttention with rotary tables, the head is
tied to the embedding. Needs: numpy, onnx.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

from fill_weights import fill
from shape import Shape

BLOCK = 32
DATA = "model.onnx.data"
ALIGNMENT = 4096


class Writer:
    """Collects nodes and the tensors they read; every tensor's data lies in one file."""

    def __init__(self, shape, bits):
        self.shape, self.bits = shape, bits
        self.nodes, self.tensors, self.size_bytes = [], [], 0

    def node(self, kind, inputs, outputs, domain="", **attributes):
        name = f"/{outputs[0]}/{kind}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def tensor(self, name, dims, data_type=TensorProto.FLOAT):
        length = int(np.prod(dims)) * (1 if data_type == TensorProto.UINT8 else 4)
        tensor = TensorProto(name=name, dims=dims, data_type=data_type, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", DATA), ("offset", self.size_bytes), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.size_bytes = -(-(self.size_bytes + length) // ALIGNMENT) * ALIGNMENT
        self.tensors.append(tensor)
        return name

    def constant(self, name, values):
        values = np.array(values, np.int64)
        self.tensors.append(onnx.numpy_helper.from_array(values, name))
        return name

    def linear(self, name, x, columns, rows, out=None):
        out = out or f"{name}.out"
        if self.bits == 32:
            return self.node("MatMul", [x, self.tensor(f"{name}.weight", [columns, rows])], [out])
        weight, scales = self.quantized(f"{name}.weight", columns, rows)
        attributes = {"K": columns, "N": rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return self.node("MatMulNBits", [x, weight, scales], [out], "com.microsoft", **attributes)

    def quantized(self, name, columns, rows):
        blocks = -(-columns // BLOCK)
        weight = self.tensor(f"{name}_Q4", [rows, blocks, BLOCK // 2], TensorProto.UINT8)
        return weight, self.tensor(f"{name}_scales", [rows, blocks])

    def add_and_norm(self, name, x, added):
        """The residual sum and its norm."""
        weight, normed, total = self.tensor(f"{name}.weight", [self.shape.hidden]), f"{name}.out", f"{name}.sum"
        inputs, outputs = [x, added, weight], [normed, "", "", total]
        self.node(
            "SkipSimplifiedLayerNormalization", inputs, outputs, "com.microsoft", epsilon=self.shape.norm_epsilon
        )
        return normed, total

    def embedding(self):
        hidden, vocab = self.shape.hidden, self.shape.vocab
        if self.bits == 32:
            # The head's weight, [hidden, vocab], is created by the head; here it is only read.
            table = self.node("Transpose", ["lm_head.weight"], ["embed.table"], perm=[1, 0])
            return self.node("Gather", [table, "input_ids"], ["embed.out"])
        dims = self.constant("embed.dims", [vocab, -(-hidden // BLOCK) * BLOCK // 2])
        table = self.node("Reshape", ["lm_head.weight_Q4", dims], ["embed.table"])
        inputs = [table, "input_ids", "lm_head.weight_scales"]
        attributes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        return self.node("GatherBlockQuantized", inputs, ["embed.out"], "com.microsoft", **attributes)

    def attention(self, layer, x):
        s = self.shape
        width = (s.heads + 2 * s.kv_heads) * s.head_dim
        qkv = self.linear(f"layers.{layer}.attn.qkv", x, s.hidden, width)
        if s.qkv_bias:
            bias = self.tensor(f"layers.{layer}.attn.qkv.bias", [width])
            qkv = self.node("Add", [qkv, bias], [f"layers.{layer}.attn.qkv.sum"])
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        out = self.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
            [f"layers.{layer}.attn.out", *present],
            "com.microsoft",
            num_heads=s.heads,
            kv_num_heads=s.kv_heads,
            scale=s.head_dim**-0.5,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self.linear(f"layers.{layer}.attn.o", out, s.heads * s.head_dim, s.hidden)

    def mlp(self, layer, x):
        name, s = f"layers.{layer}.mlp", self.shape
        gate = self.linear(f"{name}.gate", x, s.hidden, s.ffn)
        up = self.linear(f"{name}.up", x, s.hidden, s.ffn)
        sigmoid = self.node("Sigmoid", [gate], [f"{name}.sigmoid"])
        silu = self.node("Mul", [gate, sigmoid], [f"{name}.silu"])
        gated = self.node("Mul", [silu, up], [f"{name}.gated"])
        return self.linear(f"{name}.down", gated, s.ffn, s.hidden)

    def decoder(self):
        s = self.shape
        one = self.constant("one", [1])
        tokens = self.node("ReduceSum", ["attention_mask", one], ["mask.sum"], keepdims=0)
        last = self.node("Sub", [tokens, one], ["mask.last"])
        self.node("Cast", [last], ["seqlens_k"], to=TensorProto.INT32)
        dims = self.node("Shape", ["attention_mask"], ["mask.dims"])
        total = self.node("Gather", [dims, self.constant("total axis", 1)], ["mask.total"], axis=0)
        self.node("Cast", [total], ["total_sequence_length"], to=TensorProto.INT32)
        for table in ("cos_cache", "sin_cache"):
            self.tensor(table, [s.context, s.head_dim // 2])
        x = self.embedding()
        weight = self.tensor("layers.0.input_norm.weight", [s.hidden])
        attributes = {"axis": -1, "epsilon": s.norm_epsilon, "stash_type": 1}
        normed = self.node("SimplifiedLayerNormalization", [x, weight], ["layers.0.input_norm.out"], **attributes)
        for layer in range(s.layers):
            normed, x = self.add_and_norm(f"layers.{layer}.mlp_norm", x, self.attention(layer, normed))
            after = f"layers.{layer + 1}.input_norm" if layer + 1 < s.layers else "final_norm"
            normed, x = self.add_and_norm(after, x, self.mlp(layer, normed))
        self.linear("lm_head", normed, s.hidden, s.vocab, "logits")

    def model(self):
        self.decoder()
        s = self.shape
        value, ints = helper.make_tensor_value_info, TensorProto.INT64
        inputs = [
            value("input_ids", ints, ["batch_size", "sequence_length"]),
            value("attention_mask", ints, ["batch_size", "total_sequence_length"]),
        ]
        outputs = [value("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", s.vocab])]
        for layer in range(s.layers):
            for part in ("key", "value"):
                past = ["batch_size", s.kv_heads, "past_sequence_length", s.head_dim]
                present = ["batch_size", s.kv_heads, "total_sequence_length", s.head_dim]
                inputs.append(value(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, past))
                outputs.append(value(f"present.{layer}.{part}", TensorProto.FLOAT, present))
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="niwaki-benchmarks")


def genai_config(shape):
    """What onnxruntime-genai reads beside the graph."""
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    present = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "session_options": {"provider_options": []},
        "filename": "model.onnx",
        "head_size": shape.head_dim,
        "hidden_size": shape.hidden,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {"logits": "logits", **present},
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    model = {"type": shape.gguf_arch, "context_length": shape.context, "vocab_size": shape.vocab, "decoder": decoder}
    model |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return {"model": model, "search": {"max_length": shape.context, "past_present_share_buffer": True}}


def write(shape, out, bits):
    """Writes the export folder."""
    out.mkdir(parents=True, exist_ok=True)
    model = Writer(shape, bits).model()
    fill(model, out, shape)
    onnx.save(model, out / "model.onnx")
    (out / "genai_config.json").write_text(json.dumps(genai_config(shape), indent=1))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["fp32"], ["int4"]):
        raise SystemExit(__doc__)
    write(Shape.load(sys.argv[1]), pathlib.Path(sys.argv[2]), 4 if sys.argv[3:] == ["int4"] else 32)

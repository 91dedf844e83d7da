"""Writes what the tests of LoRA compare with: an adapter as PEFT saves it, and the logits of transformers with it.

The model is the demo model. The adapter is random: trained ones are no harder to merge.

    pip install torch transformers peft onnx
    python tests/lora/record.py
"""

import json
import pathlib

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
EXPORT = HERE.parent.parent / "tools/demo-model/onnx"
TOKENS = [0, 437, 1203, 88, 291, 1999, 12, 640]


def weights_of(path):
    """The weights by their names in transformers, which the export's nodes are called after."""
    graph = onnx.load(path).graph
    readers = {name: node.name for node in graph.node for name in node.input}
    found = {}
    for initializer in graph.initializer:
        value, name = torch.from_numpy(onnx.numpy_helper.to_array(initializer).copy()), initializer.name
        if not name.startswith("model.") and value.dim() == 2:
            name, value = readers[name].strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight", value.T
        found[name] = value
    return found


def main():
    config = LlamaConfig(**json.loads((EXPORT / "config.json").read_text()))
    model = LlamaForCausalLM(config)
    wanted = model.state_dict()
    found = {name: value for name, value in weights_of(EXPORT / "model.onnx").items() if name in wanted}
    missing = set(wanted) - set(found) - {"lm_head.weight"}
    assert not missing, missing
    model.load_state_dict(found, strict=False)
    model.tie_weights()
    model.eval()

    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(
        r=2, lora_alpha=6, target_modules=names, layers_to_transform=[0, 3],
        rank_pattern={"v_proj": 3}, alpha_pattern={"down_proj": 1},
    ))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.copy_((torch.randn(value.shape) * 0.06).half().float())
        plain = [name for name, value in adapted.named_parameters() if "lora_A" in name]
        assert len(plain) == 14, plain
        logits = adapted(torch.tensor([TOKENS])).logits[0].numpy()
        with adapted.disable_adapter():
            base = adapted(torch.tensor([TOKENS])).logits[0].numpy()
    print("the adapter moves logits by up to", np.abs(logits - base).max())
    adapted.save_pretrained(HERE / "adapter")
    (HERE / "adapter/README.md").unlink(missing_ok=True)
    rows = {"tokens": TOKENS, "logits": [[round(float(value), 4) for value in row[::8]] for row in logits],
            "without": [[round(float(value), 4) for value in row[::8]] for row in base]}
    (HERE / "logits.json").write_text(json.dumps(rows, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

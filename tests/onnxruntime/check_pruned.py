"""onnxruntime runs what `niwaki prune` writes: decoders with zeros and without parts, and a network that is no decoder.
At one half Wanda costs less perplexity than magnitude, and SparseGPT's update less than Wanda.

    python tests/onnxruntime/check_pruned.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "tools/demo-model"
EXPORT = DEMO / "onnx"
METHODS = {
    "wanda": ["--method", "wanda", "--calibration", DEMO / "texts/calibration.txt"],
    "magnitude": ["--method", "magnitude"],
    "sparsegpt": ["--method", "sparsegpt", "--calibration", DEMO / "texts/calibration.txt"],
    "wanda 2:4": ["--method", "wanda", "--keep", "2:4", "--calibration", DEMO / "texts/calibration.txt"],
    "sparsegpt 2:4": ["--method", "sparsegpt", "--keep", "2:4", "--calibration", DEMO / "texts/calibration.txt"],
}
PARTS = {"ffn-channels": 0.1, "layers": 0.2}


def niwaki(*arguments):
    command = ["cargo", "run", "--quiet", "--release", "--", *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def niwaki_quiet(*arguments):
    command = ["cargo", "run", "--quiet", "--release", "--", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def logits(path, tokens):
    """The logits of one call without a past."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {}
    for wanted in session.get_inputs():
        if wanted.name == "input_ids":
            feeds[wanted.name] = tokens
        elif wanted.name == "attention_mask":
            feeds[wanted.name] = np.ones_like(tokens)
        elif wanted.name == "position_ids":
            feeds[wanted.name] = np.arange(tokens.shape[1], dtype=np.int64)[None]
        else:
            heads, columns = wanted.shape[1], wanted.shape[3]
            feeds[wanted.name] = np.zeros((1, heads, 0, columns), dtype=np.float32)
    return session.run(["logits"], feeds)[0]


def check_parts(tokens):
    """onnxruntime computes what Niwaki computes of models that lost parts."""
    held_out, calibration = DEMO / "texts/held-out.txt", DEMO / "texts/calibration.txt"
    for part, share in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "model.onnx"
            options = ["--method", part, "--sparsity", share, "--calibration", calibration, "--text", held_out]
            summary = niwaki("prune", EXPORT / "model.onnx", "-o", output, *options, "--json")
            assert output.stat().st_size < (EXPORT / "model.onnx").stat().st_size, f"{part}: nothing went"
            calls, ours = Path(folder) / "calls.json", Path(folder) / "logits.npz"
            calls.write_text(json.dumps([{"name": "all", "ids": tokens[0].tolist(), "reset": True}]))
            niwaki_quiet("logits", folder, "--calls", calls, "-o", ours, "--kv", "f32")
            with np.load(ours) as arrays:
                difference = np.abs(arrays["all"] - logits(output, tokens)[0]).max()
            assert difference < 0.01, f"{part}: logits differ by {difference}"
            before, after = summary["perplexity"]["before"], summary["perplexity"]["after"]
            print(f"{part:13} perplexity {before:.2f} -> {after:.2f}, onnxruntime computes the same")


def check_network():
    """A convolution, a product in a branch, and a head that stays."""
    random = np.random.default_rng(5)
    weights = {
        "kernels": (8, 3, 3, 3), "then": (8, 8), "else": (8, 8), "head": (8, 4),
    }
    constants = {name: random.normal(size=shape).astype(np.float32) for name, shape in weights.items()}

    def branch(name):
        product = helper.make_node("MatMul", ["flat", name], ["product"])
        chosen = helper.make_node("Relu", ["product"], ["chosen"])
        result = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["batch", 8])
        tensor = numpy_helper.from_array(constants[name], name)
        return helper.make_graph([product, chosen], name, [], [result], [tensor])

    nodes = [
        helper.make_node("Conv", ["image", "kernels"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("If", ["which"], ["inner"], then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("MatMul", ["inner", "head"], ["answer"]),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 4])]
    stored = [numpy_helper.from_array(constants[name], name) for name in ("kernels", "head")]
    graph = helper.make_graph(nodes, "network", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "network.onnx", Path(folder) / "pruned.onnx"
        onnx.save(model, path)
        summary = niwaki("prune", path, "-o", output, "--method", "magnitude", "--sparsity", "0.25", "--json")
        assert len(summary["pruned"]) == 3 and len(summary["spared"]) == 1, summary
        pruned = onnx.load(output)
        onnx.checker.check_model(pruned, full_check=True)
        kernels = next(t for t in pruned.graph.initializer if t.name == "kernels")
        assert (numpy_helper.to_array(kernels) == 0).sum() == constants["kernels"].size // 4
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        image = random.normal(size=(2, 3, 8, 8)).astype(np.float32)
        for which in (True, False):
            answer = session.run(["answer"], {"image": image, "which": np.array(which)})[0]
            assert np.isfinite(answer).all()
    print("a network that is no decoder: pruned by magnitude, onnxruntime runs it")


def main():
    tokens = np.random.default_rng(7).integers(5, 1000, (1, 48))
    perplexity = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, options in METHODS.items():
            output = Path(folder) / "model.onnx"
            text = DEMO / "texts/held-out.txt"
            summary = niwaki("prune", EXPORT / "model.onnx", "-o", output, *options, "--text", text, "--json")
            share = summary["zeros"] / summary["weights"]
            assert abs(share - 0.5) < 0.001, f"{method}: {share} of the weights are zero"
            computed = logits(output, tokens)
            assert np.isfinite(computed).all(), f"{method}: onnxruntime computes no numbers"
            assert not np.allclose(computed, logits(EXPORT / "model.onnx", tokens)), f"{method}: nothing changed"
            perplexity[method] = summary["perplexity"]["after"]
            before = summary["perplexity"]["before"]
            print(f"{method:13} perplexity {before:.2f} -> {perplexity[method]:.2f}, onnxruntime runs it")
    assert perplexity["sparsegpt"] < perplexity["wanda"] < perplexity["magnitude"], perplexity
    assert perplexity["sparsegpt 2:4"] < perplexity["wanda 2:4"], perplexity
    check_parts(tokens)
    check_network()
    print(f"{len(METHODS) + len(PARTS) + 1} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())

"""onnxruntime runs what `niwaki prune` writes, and Wanda costs less perplexity than magnitude at one half.

    python tests/onnxruntime/check_pruned.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "tools/demo-model"
EXPORT = DEMO / "onnx"
METHODS = {
    "wanda": ["--method", "wanda", "--calibration", DEMO / "texts/calibration.txt"],
    "magnitude": ["--method", "magnitude"],
    "wanda 2:4": ["--method", "wanda", "--keep", "2:4", "--calibration", DEMO / "texts/calibration.txt"],
}


def niwaki(*arguments):
    command = ["cargo", "run", "--quiet", "--release", "--", *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


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
            print(f"{method:10} perplexity {before:.2f} -> {perplexity[method]:.2f}, onnxruntime runs it")
    assert perplexity["wanda"] < perplexity["magnitude"], perplexity
    print(f"{len(METHODS)} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())

"""Quantizes models with `niwaki quantize`, runs the results in onnxruntime and compares them with the originals.

Needs: pip install -r requirements.txt, cargo build --release
Usage: python check_quantized.py [--niwaki target/release/niwaki] [MODEL_DIR ...]
Without folders: the demo model, and the small exports that the tests keep.

The demo model must keep its perplexity: within 0.2 % at 8 bits, within 3 % at 4 bits; and the bundle with the same
weights must have the same perplexity in Niwaki, within 1 %. Other models (folders with a
model.onnx and a config.json) must keep their logits: correlation with the original's at least 0.999 and 0.85 (weights in the zoo are random numbers, the hardest case).
Prints one PASS, FAIL or SKIP line for each check; the exit status is 1 if any failed.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

ROOT = pathlib.Path(__file__).parents[2]
DEMO = ROOT / "tools" / "demo-model"
PERPLEXITY_LIMIT = {"int8": 0.002, "int4": 0.03}
CORRELATION_LIMIT = {"int8": 0.999, "int4": 0.85}
WINDOW = 256
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits(running, ids, head_dim):
    """Logits of a fresh cache, [rows, vocabulary]."""
    length = len(ids)
    given = {}
    for value in running.get_inputs():
        dtype = DTYPES.get(value.type, np.uint8)
        if value.name == "input_ids":
            given[value.name] = np.array([ids], dtype)
        elif value.name == "position_ids":
            given[value.name] = np.arange(length, dtype=dtype)[None]
        elif value.name == "attention_mask":
            given[value.name] = np.ones((1, length), dtype)
        else:
            shape = [dim if isinstance(dim, int) else None for dim in value.shape]
            shape = [1, shape[1], 0, shape[3] or head_dim]
            given[value.name] = np.zeros(shape, dtype)
    return running.run(["logits"], given)[0][0].astype(np.float64)


def head_dim(config):
    return config.get("head_dim") or config.get("hidden_size", config.get("n_embd")) // config.get(
        "num_attention_heads", config.get("n_head", 1)
    )


def stream(tokenizer, text):
    """The text as the model was trained: token 0 before each passage."""
    tokens = []
    for passage in filter(None, (passage.strip("\n") for passage in text.split("\n\n"))):
        tokens += [0] + tokenizer.encode(passage, add_special_tokens=False).ids
    return tokens


def perplexity(running, tokens, dim):
    """Over windows that do not see each other, as `niwaki eval --window` cuts them."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, WINDOW):
        ids = tokens[start : start + WINDOW + 1]
        rows = logits(running, ids[:-1], dim)
        highest = rows.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(rows - highest).sum(axis=1)) + highest[:, 0]
        total += (log_sum - rows[np.arange(len(rows)), ids[1:]]).sum()
        count += len(rows)
    return float(np.exp(total / count))


def structure(quantized):
    """What is wrong with the rewritten graph, or None."""
    operators = {node.op_type for node in onnx.load(str(quantized), load_external_data=False).graph.node}
    if operators.isdisjoint({"MatMulNBits", "MatMulInteger", "DequantizeLinear"}):
        return "nothing in it is quantized"
    return None


class Checks:
    def __init__(self, niwaki, weights):
        self.niwaki, self.weights, self.failed = niwaki, weights, False

    def line(self, verdict, name, weights, text):
        self.failed |= verdict == "FAIL"
        print(f"{verdict} {name} {weights}: {text}", flush=True)

    def quantize(self, model, weights, folder):
        target = pathlib.Path(folder) / f"{weights}.onnx"
        command = [self.niwaki, "quantize", str(model), "-o", str(target), "--weights", weights]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return target

    def demo(self, folder):
        from tokenizers import Tokenizer

        model = folder / "onnx" / "model.onnx"
        dim = head_dim(json.loads((folder / "onnx" / "config.json").read_text()))
        tokenizer = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json"))
        text = folder / "texts" / "held-out.txt"
        tokens = stream(tokenizer, text.read_text())
        reference = perplexity(session(model), tokens, dim)
        for weights in self.weights:
            with tempfile.TemporaryDirectory() as scratch:
                quantized = self.quantize(model, weights, scratch)
                value = perplexity(session(quantized), tokens, dim)
                change, size = value / reference - 1, quantized.stat().st_size
                good = change <= PERPLEXITY_LIMIT[weights]
                report = f"perplexity {value:.4f} against {reference:.4f} ({change:+.3%}), {size} bytes"
                self.line("PASS" if good else "FAIL", folder.name, weights, report)
                own = self.own_perplexity(folder, weights, text, pathlib.Path(scratch) / "model.niwaki")
                apart = own / value - 1
                report = f"the bundle's perplexity {own:.4f} is {apart:+.3%} from onnxruntime's"
                self.line("PASS" if abs(apart) <= 0.01 else "FAIL", folder.name, weights, report)

    def refused(self, name, model):
        """A model that the exporter quantized: there is nothing to do, and no file may come of it."""
        for weights in self.weights:
            with tempfile.TemporaryDirectory() as scratch:
                target = pathlib.Path(scratch) / "out.onnx"
                command = [self.niwaki, "quantize", str(model), "-o", str(target), "--weights", weights]
                said = subprocess.run(command, capture_output=True, text=True)
                good = said.returncode != 0 and "quantized already" in said.stderr and not target.exists()
                self.line("PASS" if good else "FAIL", name, weights, "refused: it is quantized already" if good else said.stderr)

    def own_perplexity(self, folder, weights, text, bundle):
        """What `niwaki eval` says of the bundle that `niwaki build` makes with the same weights."""
        build = [self.niwaki, "build", str(folder), "-o", str(bundle), "--weights", weights, "--method", "rtn"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        evaluate = [self.niwaki, "eval", str(bundle), "--text", str(text), "--window", str(WINDOW)]
        evaluate += ["--bos", "passage", "--json"]
        return json.loads(subprocess.run(evaluate, check=True, capture_output=True).stdout)["perplexity"]

    def model(self, folder):
        model = folder / "model.onnx"
        dim = head_dim(json.loads((folder / "config.json").read_text()))
        ids = np.random.default_rng(7).integers(1, 500, 24).tolist()
        try:
            wanted = logits(session(model), ids, dim)
        except Exception as error:
            self.line("SKIP", folder.name, "", f"the original does not run like this: {str(error)[:120]}")
            return
        if folder.name.endswith("--int4"):
            return self.refused(folder.name, model)
        for weights in self.weights:
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    quantized = self.quantize(model, weights, scratch)
                    fault = structure(quantized)
                    got = logits(session(quantized), ids, dim)
                except Exception as error:
                    self.line("FAIL", folder.name, weights, str(error)[:300])
                    continue
                correlation = np.corrcoef(got.ravel(), wanted.ravel())[0, 1]
                good = not fault and got.shape == wanted.shape and correlation >= CORRELATION_LIMIT[weights]
                text = f"correlation {correlation:.5f}, largest difference {np.abs(got - wanted).max():.3f}"
                self.line("PASS" if good else "FAIL", folder.name, weights, fault or text)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--niwaki", default=ROOT / "target" / "release" / "niwaki")
    arguments.add_argument("--weights", nargs="+", choices=PERPLEXITY_LIMIT, default=list(PERPLEXITY_LIMIT))
    arguments.add_argument("models", nargs="*", type=pathlib.Path)
    given = arguments.parse_args()
    checks = Checks(given.niwaki, given.weights)
    if not given.models:
        checks.demo(DEMO)
    for folder in given.models or sorted(path.parent for path in (ROOT / "tests").glob("zoo/*/model.onnx")):
        checks.model(folder)
    sys.exit(checks.failed)


if __name__ == "__main__":
    main()

"""Quantizes small graphs of every kind of weight with `niwaki quantize` and compares what onnxruntime computes before and after.

Needs: pip install -r requirements.txt, cargo build --release
Usage: python check_any_operator.py [--niwaki target/release/niwaki]

Weights are noise whose channels differ in size by up to a thousand times, so scales along a wrong axis, or of a wrong channel,
miss the limits by far: the error of each output, over its root mean square along the channels, is at most 1.5 % at 8 bits
and 20 % at 4. Each result must pass ONNX's checker, hold what its case expects and no other float weights.
Prints one PASS or FAIL line for each graph; the exit status is 1 if any failed.
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
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = {"int8": 0.015, "int4": 0.2}
RANDOM = np.random.default_rng(11)


def uneven(shape, axis, dtype=np.float32):
    """Noise of which each slice along `axis` has a size of its own."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    size = 10.0 ** RANDOM.permutation(np.linspace(-2, 1, shape[axis]))
    return (RANDOM.normal(size=shape) * size.reshape(sizes)).astype(dtype)


class Case:
    """A graph, what it is given, and what its quantized form must hold."""

    def __init__(self, name, nodes, weights, given, holds, channel=-1, opset=18, ir=8, left=0, only=None, shape=None, limit=1.0):
        self.name, self.nodes, self.weights, self.given, self.holds = name, nodes, weights, given, holds
        # The axis of the output along which sizes differ; its shape where it does not follow from the rest.
        self.shape = shape
        self.channel, self.opset, self.ir, self.left, self.only, self.limit = channel, opset, ir, left, only, limit

    def model(self):
        def inputs(arrays):
            return [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in arrays.items()
            ]

        dtype = next(iter(self.weights.values())).dtype if self.weights else np.dtype(np.float32)
        output = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(dtype), self.shape)
        given = dict(self.given)
        if self.ir < 4:
            given.update(self.weights)
        stored = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "graph", inputs(given), [output], stored)
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain for node in self.nodes):
            imports.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir)
        # The shape of the result follows from the rest.
        return onnx.shape_inference.infer_shapes(model)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f"{operator}_{outputs[0]}", **attributes)


def noise(*shape, dtype=np.float32):
    return RANDOM.normal(size=shape).astype(dtype)


def body(name, nodes, inputs, outputs, weights=()):
    def values(named):
        return [helper.make_tensor_value_info(value, dtype, shape) for value, dtype, shape in named]

    stored = [numpy_helper.from_array(array, weight) for weight, array in weights]
    return helper.make_graph(nodes, name, values(inputs), values(outputs), stored)


def branches():
    """An `If` between a product by a matrix of its own and one by a matrix of the graph around it."""
    result = [("chosen", TensorProto.FLOAT, [96, 48])]
    own = ("w", uneven((64, 48), 1))
    then_branch = body("then", [node("MatMul", ["x", "w"], ["chosen"])], [], result, [own])
    else_branch = body("else", [node("MatMul", ["x", "outer"], ["chosen"])], [], result)
    return [node("If", ["which"], ["y"], then_branch=then_branch, else_branch=else_branch)]


def loop():
    """Three steps of a product, with weights that are stored in the loop."""
    nodes = [
        node("Identity", ["going"], ["goes_on"]),
        node("MatMul", ["state", "w"], ["product"]),
        node("Tanh", ["product"], ["next"]),
    ]
    inputs = [("step", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, [96, 64])]
    outputs = [("goes_on", TensorProto.BOOL, []), ("next", TensorProto.FLOAT, [96, 64])]
    inside = body("inside", nodes, inputs, outputs, [("w", noise(64, 64) / 8)])
    return [node("Loop", ["count", "", "x"], ["y"], body=inside)]


def scan():
    """A product of each row, by a matrix of the graph around, and a convolution of it by kernels of the body."""
    nodes = [
        node("MatMul", ["row", "outer"], ["product"]),
        node("Reshape", ["product", "shape"], ["image"]),
        node("Conv", ["image", "kernels"], ["features"]),
    ]
    inputs = [("row", TensorProto.FLOAT, [1, 64])]
    outputs = [("features", TensorProto.FLOAT, [1, 16, 1, 4])]
    stored = [("kernels", uneven((16, 8, 1, 9), 0)), ("shape", np.array([1, 8, 1, 12], np.int64))]
    inside = body("inside", nodes, inputs, outputs, stored)
    return [node("Scan", ["x"], ["y"], body=inside, num_scan_inputs=1)]


def cases():
    image = {"x": noise(2, 8, 9, 9)}
    rows = {"x": noise(96, 64)}
    ids = {"input_ids": np.array([[3, 99, 0, 127], [64, 1, 2, 3]], np.int64)}
    by_axis, by_product, blocks = {"DequantizeLinear"}, {"Cast", "Mul"}, {"MatMulNBits"}

    for opset, ir, holds in ((18, 8, by_axis), (13, 7, by_axis), (11, 6, by_product), (8, 3, by_product)):
        conv = [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
        weights = {"w": uneven((16, 8, 3, 3), 0), "b": noise(16) / 100}
        yield Case(f"Conv of opset {opset}", conv, weights, image, holds, channel=1, opset=opset, ir=ir, left=1)
    depthwise = [node("Conv", ["x", "w"], ["y"], group=128)]
    yield Case("depthwise Conv", depthwise, {"w": uneven((128, 1, 3, 3), 0)}, {"x": noise(1, 128, 9, 9)}, by_axis, channel=1)
    yield Case("1-D Conv", [node("Conv", ["x", "w"], ["y"])], {"w": uneven((32, 16, 5), 0)}, {"x": noise(1, 16, 20)}, by_axis, channel=1)
    transpose = [node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])]
    yield Case("ConvTranspose", transpose, {"w": uneven((8, 16, 3, 3), 1)}, image, by_axis, channel=1)
    grouped = [node("ConvTranspose", ["x", "w"], ["y"], group=8)]
    yield Case("grouped ConvTranspose", grouped, {"w": uneven((8, 16, 3, 3), 0)}, image, by_axis, channel=1, limit=2.0)

    plain = [node("MatMul", ["x", "w"], ["y"])]
    yield Case("MatMul", plain, {"w": uneven((64, 48), 1)}, rows, blocks)
    yield Case("MatMul by short rows", plain, {"w": uneven((24, 96), 1)}, {"x": noise(96, 24)}, by_axis)
    yield Case("MatMul from the left", [node("MatMul", ["w", "x"], ["y"])], {"w": uneven((48, 64), 0)}, {"x": noise(64, 96)}, by_axis, channel=0)
    yield Case("batched MatMul", plain, {"w": uneven((4, 64, 48), 0) * uneven((1, 1, 48), 2)}, {"x": noise(4, 96, 64)}, by_product, channel=(0, 2))
    for attributes, holds in (
        ({"transB": 1}, blocks),
        ({"alpha": 0.5, "transB": 1}, blocks),
        ({"beta": 0.25, "transB": 1}, by_axis),
        ({"transA": 1, "transB": 1, "alpha": 2.0}, by_axis),
    ):
        x = noise(64, 96) if "transA" in attributes else noise(96, 64)
        gemm = [node("Gemm", ["x", "w", "b"], ["y"], **attributes)]
        yield Case(f"Gemm {attributes}", gemm, {"w": uneven((48, 64), 0), "b": noise(48) / 100}, {"x": x}, holds, left=1)
    yield Case("Gemm from the left", [node("Gemm", ["w", "x"], ["y"], transA=1)], {"w": uneven((64, 48), 1)}, {"x": noise(64, 96)}, by_axis, channel=0)

    einsum = [node("Einsum", ["x", "w"], ["y"], equation="bld,hd->blh")]
    yield Case("Einsum", einsum, {"w": uneven((48, 64), 0)}, {"x": noise(2, 48, 64)}, by_axis)
    heads = [node("Einsum", ["x", "w"], ["y"], equation="bld,dhk->bhlk")]
    yield Case("Einsum of heads", heads, {"w": uneven((64, 4, 12), 1) * uneven((1, 1, 12), 2)}, {"x": noise(2, 48, 64)}, by_product, channel=(1, 3))
    around = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("Einsum", ["x", "t"], ["y"], equation="...d,df")]
    yield Case("Einsum of a transposed matrix", around, {"w": uneven((48, 64), 0)}, {"x": noise(2, 48, 64)}, by_axis)

    lstm = [node("LSTM", ["x", "w", "r"], ["", "hidden"], hidden_size=16), node("Squeeze", ["hidden"], ["y"])]
    recurrent = {"w": noise(1, 64, 24) / 5, "r": noise(1, 64, 16) / 5}
    yield Case("LSTM", lstm, recurrent, {"x": noise(6, 96, 24)}, by_product, limit=2.0)

    lookup = [node("Gather", ["table", "input_ids"], ["y"])]
    gathers = {"GatherBlockQuantized"}
    # What a row holds differs row by row, and each is looked at on its own.
    yield Case("Gather", lookup, {"table": uneven((128, 64), 0)}, ids, gathers, channel=(0, 1))
    yield Case("Gather of odd rows", lookup, {"table": uneven((128, 33), 0)}, ids, by_axis, channel=(0, 1), only="int4")
    columns = [node("Gather", ["table", "input_ids"], ["y"], axis=1)]
    yield Case("Gather of columns", columns, {"table": uneven((64, 128), 1)}, ids, by_axis, channel=(1, 2))

    for which in (True, False):
        given = {"x": noise(96, 64), "which": np.array(which)}
        yield Case(f"MatMul in an If that is {which}", branches(), {"outer": uneven((64, 48), 1)}, given, blocks)
    yield Case("MatMul in a Loop", loop(), {}, {"x": noise(96, 64), "count": np.array(3, np.int64)}, blocks, shape=[96, 64], limit=2.0)
    yield Case("MatMul and Conv in a Scan", scan(), {"outer": noise(64, 96)}, {"x": noise(48, 1, 64)}, blocks | by_axis, channel=2, limit=2.0)

    for dtype, conv_holds in ((np.float16, by_axis | {"Cast"}), (np.float64, by_axis | {"Cast"})):
        name = np.dtype(dtype).name
        product = blocks if dtype is np.float16 else blocks | {"Cast"}
        yield Case(f"MatMul in {name}", plain, {"w": uneven((64, 48), 1, dtype)}, {"x": noise(96, 64, dtype=dtype)}, product)
        yield Case(f"Einsum in {name}", einsum, {"w": uneven((48, 64), 0, dtype)}, {"x": noise(2, 48, 64, dtype=dtype)}, conv_holds)
        yield Case(f"Gather in {name}", lookup, {"table": uneven((128, 64), 0, dtype)}, ids, gathers, channel=(0, 1))
    conv = [node("Conv", ["x", "w"], ["y"])]
    half = {"w": uneven((16, 8, 3, 3), 0, np.float16)}
    yield Case("Conv in float16", conv, half, {"x": noise(2, 8, 9, 9, dtype=np.float16)}, by_axis | {"Cast"}, channel=1)

    yield from tiny_cases(plain, lookup, rows, ids)


def tiny_cases(plain, lookup, rows, ids):
    """Weights whose scales f16, or every type, is too coarse for: none may become zero."""
    gathers, blocks = {"GatherBlockQuantized"}, {"MatMulNBits"}
    mixed = uneven((64, 48), 1)
    mixed[:32, ::2] *= 1e-12
    mixed[32:, ::2] = 0
    yield Case("tiny blocks in float32", plain, {"w": mixed}, rows, blocks)
    half = np.where(np.arange(48) % 2, noise(64, 48), 6e-7 * np.sign(noise(64, 48))).astype(np.float16)
    yield Case("tiny columns in float16", plain, {"w": half}, {"x": noise(96, 64, dtype=np.float16) * np.float16(64)}, blocks | {"Cast"})
    table = np.where(np.arange(128)[:, None] % 2, noise(128, 64), 6e-7 * np.sign(noise(128, 64))).astype(np.float16)
    yield Case("tiny rows of a table in float16", lookup, {"table": table}, ids, gathers | {"Cast"}, channel=(0, 1))
    kernels = np.where(np.arange(16)[:, None, None, None] % 2, noise(16, 8, 3, 3), 4e-6).astype(np.float16)
    conv = [node("Conv", ["x", "w"], ["y"])]
    image = {"x": noise(2, 8, 9, 9, dtype=np.float16) * np.float16(8)}
    yield Case("tiny kernels in float16", conv, {"w": kernels}, image, {"DequantizeLinear", "Cast"}, channel=1)
    # Kept floats, each beside a matrix that can be quantized.
    beside = {"w": noise(64, 64)}
    first = node("MatMul", ["x", "w"], ["h"])
    for operator, lost in (("MatMul", noise(64, 64)), ("Conv", noise(64, 64, 1))):
        inputs = {"x": noise(2, 64, 64)}
        last = node(operator, ["h", "lost"], ["y"])
        weights = {**beside, "lost": (lost * 1e-39).astype(np.float32)}
        # onnxruntime computes with what lies below the normal numbers or takes it for zero, as it is built.
        yield Case(f"{operator} by numbers that no scale reaches", [first, last], weights, inputs, blocks, left=1, limit=np.inf)
    double = {"w": noise(64, 64, dtype=np.float64), "lost": noise(64, 64, dtype=np.float64) * 1e-60}
    last = node("MatMul", ["h", "lost"], ["y"])
    yield Case("float64 that float32 does not reach", [first, last], double, {"x": noise(96, 64, dtype=np.float64)}, blocks | {"Cast"}, left=1, limit=2.0)


def operators(graph):
    found = set()
    for one in graph.node:
        found.add(one.op_type)
        for attribute in one.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= operators(attribute.g)
    return found


def computed(path, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], given)[0].astype(np.float64)


def error(got, wanted, channel):
    """The largest error of a channel over what it holds; where something is, something must be left."""
    channels = channel if isinstance(channel, tuple) else (channel,)
    kept = {axis % wanted.ndim for axis in channels}
    others = tuple(axis for axis in range(wanted.ndim) if axis not in kept)
    size = np.sqrt(np.square(wanted).mean(axis=others))
    away = np.sqrt(np.square(got - wanted).mean(axis=others))
    return float((away[size > 0] / size[size > 0]).max()) if (size > 0).any() else 0.0


def check(niwaki, case, weights, folder):
    """What is wrong, or None, and a line about it."""
    model, quantized = folder / "model.onnx", folder / "quantized.onnx"
    onnx.save(case.model(), model)
    onnx.checker.check_model(str(model))
    command = [niwaki, "quantize", str(model), "-o", str(quantized), "--weights", weights, "--json"]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode != 0:
        return said.stderr, ""
    summary = json.loads(said.stdout)
    written = onnx.load(quantized)
    if not any(one.domain for one in written.opset_import):
        onnx.checker.check_model(written, full_check=True)
    fault = None
    if not case.holds <= operators(written.graph):
        fault = f"it holds {operators(written.graph)}"
    if len(summary["left"]) != case.left or any(not left["size_bytes"] for left in summary["left"]):
        fault = f"left in floats: {summary['left']}"
    before, after = computed(model, case.given), computed(quantized, case.given)
    if after.shape != before.shape or not np.isfinite(after).all():
        return "other shapes, or no numbers", ""
    away, limit = error(after, before, case.channel), LIMIT[weights] * case.limit
    if case.holds.isdisjoint({"MatMulNBits", "GatherBlockQuantized"}):
        limit = LIMIT["int8"] * case.limit
    if not away <= limit:
        fault = fault or f"error {away:.4f}, at most {limit}"
    return fault, f"error {away:.5f}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--niwaki", default=ROOT / "target" / "release" / "niwaki")
    niwaki = arguments.parse_args().niwaki
    failed = False
    for case in cases():
        for weights in [case.only] if case.only else LIMIT:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    fault, text = check(niwaki, case, weights, pathlib.Path(folder))
                except Exception as exception:
                    fault, text = f"{type(exception).__name__}: {str(exception)[:300]}", ""
            failed |= fault is not None
            print(f"{'FAIL' if fault else 'PASS'} {case.name}, {weights}: {fault or text}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

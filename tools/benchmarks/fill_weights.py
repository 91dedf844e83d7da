"""Fills the external data of an exported graph with seeded random weights.

    python fill_weights.py SHAPE.json GRAPH_FOLDER OUT_FOLDER

Speed does not depend on what weights are, so real exporters' graphs without their weights (GRAPH_FOLDER: model.onnx
and its small JSON files) and SHAPE.json are enough to measure a model. What is not a weight is what the exporter
would have written: rotary tables and inverse frequencies follow from rope_theta. Needs: numpy, onnx.
"""

import pathlib
import shutil
import sys
import zlib

import numpy as np
import onnx
from onnx import TensorProto

from shape import Shape

CHUNK = 1 << 22
FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}


def fill(model, folder, shape):
    """Writes the external data that `model` (loaded without it) names into `folder`."""
    roles = _roles(model.graph)
    files = {}
    try:
        for name, tensor in _external_tensors(model.graph):
            where = {entry.key: entry.value for entry in tensor.external_data}
            location = where["location"]
            if location not in files:
                path = folder / location
                if path.parent.resolve() != folder.resolve():
                    raise SystemExit(f"{name}: external data outside of the folder: {location}")
                files[location] = open(path, "wb")
            file = files[location]
            offset = int(where.get("offset", 0))
            file.seek(offset)
            for part in _values(name, tensor, roles.get(name, "weight"), shape):
                file.write(part.tobytes())
            written = file.tell() - offset
            if int(where.get("length", written)) != written:
                raise SystemExit(f"{name}: {written} bytes do not fit its length {where['length']}")
    finally:
        for file in files.values():
            file.close()


def fill_folder(source, out, shape):
    """Copies an export without weights and fills the copy."""
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    fill(onnx.load(out / "model.onnx", load_external_data=False), out, shape)


def _external_tensors(graph):
    """Initializers and Constant nodes whose data lies in a file, by name of the value."""
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.t.data_location == TensorProto.EXTERNAL:
                    yield node.output[0], attribute.t


def _roles(graph):
    """What values are to the operators that read them, where that is more than a weight."""
    inputs = {
        "GroupQueryAttention": {7: "cos", 8: "sin"},
        "RotaryEmbedding": {2: "cos", 3: "sin"},
        "MatMulNBits": {2: "scale", 3: "zero point"},
        "GatherBlockQuantized": {2: "scale", 3: "zero point"},
        "DequantizeLinear": {1: "scale", 2: "zero point"},
        "SimplifiedLayerNormalization": {1: "norm"},
        "SkipSimplifiedLayerNormalization": {2: "norm"},
        "RMSNormalization": {1: "norm"},
    }
    roles = {}
    for node in graph.node:
        by_index = inputs.get(node.op_type, {})
        if node.op_type == "RotaryEmbedding" and not node.domain:
            by_index = {1: "cos", 2: "sin"}
        for index, role in by_index.items():
            if index < len(node.input):
                roles[node.input[index]] = role
    return roles


def _values(name, tensor, role, shape):
    """The tensor's values, in parts."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if tensor.data_type in (TensorProto.UINT8, TensorProto.INT8):
        # Of two packed 4-bit numbers, or one 8-bit number, the middle of the unsigned range is zero.
        middle = 0x88 if tensor.data_type == TensorProto.UINT8 else 0
        yield np.full(count, middle, np.uint8) if role == "zero point" else np.frombuffer(random.bytes(count), np.uint8)
        return
    if tensor.data_type not in FLOATS:
        raise SystemExit(f"{name}: no values for data type {TensorProto.DataType.Name(tensor.data_type)}")
    dtype = FLOATS[tensor.data_type]
    if role in ("cos", "sin"):
        positions, pairs = tensor.dims
        angles = np.arange(positions)[:, None] * inverse_frequencies(shape, pairs)[None]
        yield (np.cos if role == "cos" else np.sin)(angles).astype(dtype)
    elif list(tensor.dims) == [1, shape.head_dim // 2, 1]:
        yield inverse_frequencies(shape, shape.head_dim // 2).astype(dtype)
    elif role == "norm" or (len(tensor.dims) < 2 and "bias" not in name and role != "scale"):
        yield np.ones(count, dtype)
    else:
        for start in range(0, count, CHUNK):
            part = min(CHUNK, count - start)
            if role == "scale":
                yield random.uniform(0.001, 0.004, part).astype(dtype)
            else:
                yield (random.standard_normal(part, dtype=np.float32) * np.float32(0.02)).astype(dtype)


def inverse_frequencies(shape, pairs):
    """Radians per position of each pair of a rotary embedding (Su et al., 2021)."""
    return shape.rope_theta ** (-np.arange(pairs) / pairs)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    fill_folder(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), Shape.load(sys.argv[1]))

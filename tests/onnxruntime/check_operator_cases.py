"""Compares tools/convert/src/onnx/evaluate/cases.json with what onnxruntime computes: single operators on small inputs.

The Rust tests hold Niwaki's evaluation of nodes against that file. Needs: pip install -r requirements.txt
Usage: python check_operator_cases.py            the file must agree with this machine's onnxruntime
       python check_operator_cases.py --write    after a change of the cases below
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

CASES = pathlib.Path(__file__).parents[2] / "tools/convert/src/onnx/evaluate/cases.json"
INF, NAN = float("inf"), float("nan")
FLOATS = np.array([[-1.5, 0.25, 2.0], [3.5, -0.75, 0.0]], np.float32)
POSITIVE = np.array([[0.5, 0.25, 2.0], [3.5, 1.0, 9.0]], np.float32)
INTS = np.array([[5, -3, 7], [0, 2, -8]], np.int64)
FLAGS = np.array([[True, False, True], [False, False, True]])
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def i64(*values):
    return np.array(values, np.int64)


def scalar(value, dtype=np.int64):
    return np.array(value, dtype)


def f32(*values):
    return np.array(values, np.float32)


def cases():
    yield "Shape", 18, {}, [CUBE]
    yield "Shape", 18, {"start": 1}, [CUBE]
    yield "Shape", 18, {"start": -2, "end": -1}, [CUBE]
    yield "Shape", 18, {"start": 2, "end": 1}, [CUBE]
    yield "Shape", 13, {}, [scalar(3)]
    yield "Shape", 23, {"start": 0, "end": 1}, [CUBE]
    yield "Size", 18, {}, [CUBE]
    for dtype in (np.float32, np.int64, np.int32, np.float16, np.bool_, np.uint8):
        yield "Gather", 18, {"axis": 0}, [INTS.astype(dtype), scalar(1)]
    yield "Gather", 18, {"axis": 1}, [CUBE, i64(2, 0, -1)]
    yield "Gather", 18, {"axis": -1}, [CUBE, np.array([[1, 2]], np.int64)]
    yield "Gather", 18, {"axis": 0}, [i64(10, 20, 30), np.array([1], np.int32)]
    yield "GatherND", 18, {}, [CUBE, np.array([[0, 1], [1, 2]], np.int64)]
    yield "GatherND", 18, {"batch_dims": 1}, [CUBE, np.array([[1], [2]], np.int64)]
    yield "GatherND", 23, {}, [FLAGS, np.array([[[0, 1]], [[1, 2]]], np.int64)]
    yield "GatherElements", 18, {"axis": 1}, [FLOATS, np.array([[0, 2], [1, -1]], np.int64)]
    yield "GatherElements", 18, {"axis": 0}, [INTS, np.array([[0, 1, 0]], np.int64)]
    yield "Unsqueeze", 18, {}, [INTS, i64(0, 3)]
    yield "Unsqueeze", 18, {}, [INTS, i64(-1)]
    yield "Unsqueeze", 18, {}, [scalar(4), i64(0)]
    yield "Unsqueeze", 11, {"axes": [1]}, [INTS]
    yield "Squeeze", 18, {}, [CUBE[:1, :, :1], i64(0)]
    yield "Squeeze", 18, {}, [CUBE[:1, :, :1], i64(-1)]
    yield "Squeeze", 18, {}, [CUBE[:1, :, :1]]
    yield "Squeeze", 11, {"axes": [0]}, [CUBE[:1]]
    yield "Concat", 18, {"axis": 0}, [i64(1, 2), i64(), i64(3)]
    yield "Concat", 18, {"axis": -1}, [FLOATS, POSITIVE]
    yield "Concat", 18, {"axis": 1}, [FLAGS, FLAGS]
    yield "Slice", 18, {}, [CUBE, i64(1), i64(3), i64(1)]
    yield "Slice", 18, {}, [CUBE, i64(0, -1), i64(9223372036854775807, -4), i64(1, 2), i64(2, -1)]
    yield "Slice", 18, {}, [CUBE, i64(1), i64(9223372036854775807)]
    yield "Slice", 18, {}, [i64(4, 5, 6, 7), i64(-2), i64(-1), i64(0)]
    yield "Slice", 18, {}, [i64(4, 5, 6, 7), i64(-1), i64(-9223372036854775808), i64(0), i64(-1)]
    yield "Slice", 18, {}, [i64(4, 5, 6, 7), i64(3), i64(2), i64(0)]
    yield "Slice", 9, {"starts": [1], "ends": [3], "axes": [2]}, [CUBE]
    yield "Slice", 18, {}, [FLAGS, np.array([1], np.int32), np.array([3], np.int32), np.array([1], np.int32)]
    yield "Reshape", 18, {}, [CUBE, i64(4, -1)]
    yield "Reshape", 18, {}, [CUBE, i64(0, 0, 2, 2)]
    yield "Reshape", 18, {}, [CUBE, i64(-1)]
    yield "Reshape", 18, {"allowzero": 1}, [CUBE[:0], i64(0, 7)]
    yield "Reshape", 18, {}, [i64(3), i64()]
    yield "Reshape", 18, {}, [FLAGS, i64(3, 2)]
    yield "Range", 18, {}, [scalar(2), scalar(9), scalar(3)]
    yield "Range", 18, {}, [scalar(5), scalar(0), scalar(-2)]
    yield "Range", 18, {}, [scalar(5), scalar(5), scalar(1)]
    yield "Range", 18, {}, [scalar(0, np.int32), scalar(4, np.int32), scalar(1, np.int32)]
    yield "Range", 18, {}, [scalar(0, np.float32), scalar(1, np.float32), scalar(0.25, np.float32)]
    types = {
        np.float32: TensorProto.FLOAT,
        np.int64: TensorProto.INT64,
        np.int32: TensorProto.INT32,
        np.bool_: TensorProto.BOOL,
        np.float16: TensorProto.FLOAT16,
        np.float64: TensorProto.DOUBLE,
        np.uint8: TensorProto.UINT8,
        np.int8: TensorProto.INT8,
    }
    for source in (np.float32, np.int64, np.int32, np.bool_, np.float16, np.float64):
        for target, code in types.items():
            values = np.array([0.0, 1.0, 2.75, 100.5]) if target in (np.uint8,) else np.array([0.0, -1.0, 2.75, 100.5])
            yield "Cast", 18, {"to": code}, [values.astype(source)]
    yield "CastLike", 18, {}, [FLOATS, i64(1)]
    yield "CastLike", 18, {}, [INTS, f32(1)]
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        yield op, 18, {}, [INTS, scalar(2)]
        yield op, 18, {}, [i64(1, 2, 3), np.array([[1], [3]], np.int64)]
        yield op, 18, {}, [FLOATS, f32(0.25, 0.25, 0.0)]
    yield "Equal", 18, {}, [FLAGS, np.array([True, True, False])]
    yield "Equal", 18, {}, [np.array([1, 2], np.int32), np.array([1, 3], np.int32)]
    for op in ("And", "Or", "Xor"):
        yield op, 18, {}, [FLAGS, np.array([True, True, False])]
    yield "Not", 18, {}, [FLAGS]
    for dtype in (np.float32, np.int64, np.int32, np.float16):
        yield "Where", 18, {}, [FLAGS, INTS.astype(dtype), scalar(1, dtype)]
    yield "Where", 18, {}, [np.array([[True], [False]]), f32(1, 2, 3), scalar(-INF, np.float32)]
    yield "ConstantOfShape", 18, {"value": np.array([7], np.int64)}, [i64(2, 3)]
    yield "ConstantOfShape", 18, {"value": np.array([-INF], np.float32)}, [i64(2)]
    yield "ConstantOfShape", 18, {}, [i64(1, 2)]
    yield "ConstantOfShape", 18, {"value": np.array([True])}, [i64()]
    yield "ConstantOfShape", 18, {"value": np.array([1], np.int32)}, [i64(0)]
    yield "Expand", 18, {}, [INTS, i64(2, 1, 3)]
    yield "Expand", 18, {}, [f32(1, 2, 3), i64(2, 1)]
    yield "Expand", 18, {}, [FLAGS, i64(1, 1, 2, 3)]
    yield "Expand", 18, {}, [scalar(4), i64(2, 2)]
    square = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    for upper in (0, 1):
        yield "Trilu", 18, {"upper": upper}, [square]
        yield "Trilu", 18, {"upper": upper}, [square, scalar(1)]
        yield "Trilu", 18, {"upper": upper}, [square[:, :3].astype(np.int64), scalar(-1)]
        yield "Trilu", 18, {"upper": upper}, [CUBE, scalar(2)]
        yield "Trilu", 18, {"upper": upper}, [square.astype(np.bool_), scalar(0)]
    for attributes in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        yield "CumSum", 18, attributes, [INTS, scalar(1)]
    yield "CumSum", 18, {}, [FLOATS, scalar(-2)]
    yield "CumSum", 18, {}, [INTS.astype(np.int32), np.array([1], np.int32)]
    yield "ScatterND", 18, {}, [FLOATS, np.array([[0, 1], [1, 2]], np.int64), f32(9, 8)]
    yield "ScatterND", 18, {}, [CUBE, np.array([[1]], np.int64), CUBE[:1]]
    yield "ScatterND", 18, {"reduction": "add"}, [i64(1, 2, 3), np.array([[0], [0]], np.int64), i64(5, 6)]
    yield "ScatterElements", 18, {"axis": 1}, [FLOATS, np.array([[0, 2], [1, -1]], np.int64), POSITIVE[:, :2]]
    yield "ScatterElements", 18, {"axis": 0}, [INTS, np.array([[1, 0, 1]], np.int64), INTS[1:]]
    for op in ("Cos", "Sin", "Tan", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign", "Erf", "Exp", "Tanh", "Sigmoid"):
        yield op, 18, {}, [FLOATS]
    for op in ("Softplus", "Relu"):
        yield op, 18, {}, [FLOATS]
    yield "Gelu", 20, {}, [FLOATS]
    for op in ("Sqrt", "Reciprocal", "Log"):
        yield op, 18, {}, [POSITIVE]
    for op in ("Neg", "Abs", "Sign"):
        yield op, 18, {}, [INTS]
    for op in ("Cos", "Neg", "Sqrt", "Exp"):
        yield op, 18, {}, [POSITIVE.astype(np.float16)]
    yield "IsNaN", 18, {}, [f32(1, NAN, INF)]
    yield "IsInf", 18, {}, [f32(1, NAN, INF, -INF)]
    yield "IsInf", 18, {"detect_negative": 0}, [f32(INF, -INF)]
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"):
        yield op, 18, {}, [POSITIVE, f32(2, 1, 3)]
        yield op, 18, {}, [POSITIVE[:, :, None], f32(2, 1)]
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        yield op, 18, {}, [INTS, i64(2, -3, 4)]
        yield op, 18, {}, [INTS.astype(np.int32), scalar(2, np.int32)]
        yield op, 18, {}, [POSITIVE.astype(np.float16), scalar(2, np.float16)]
    yield "Max", 18, {}, [i64(1, 5), i64(4, 2), i64(3, 3)]
    yield "Pow", 18, {}, [POSITIVE, scalar(2.0, np.float32)]
    yield "Pow", 18, {}, [POSITIVE, scalar(2)]
    yield "Pow", 18, {}, [i64(2, 3), i64(3, 2)]
    yield "Pow", 18, {}, [scalar(10000.0, np.float32), f32(0, 0.25, 0.5)]
    yield "Mod", 18, {}, [i64(5, -5, 5, -5), i64(3, 3, -3, -3)]
    yield "Mod", 18, {"fmod": 1}, [i64(5, -5, 5, -5), i64(3, 3, -3, -3)]
    yield "Mod", 18, {"fmod": 1}, [f32(5.5, -5.5), f32(3, 3)]
    yield "Sum", 18, {}, [FLOATS, POSITIVE, f32(1, 2, 3)]
    yield "Clip", 18, {}, [FLOATS, scalar(-1.0, np.float32), scalar(1.0, np.float32)]
    yield "Clip", 18, {}, [INTS, scalar(-1), scalar(3)]
    yield "Clip", 18, {}, [INTS, None, scalar(3)]
    yield "MatMul", 18, {}, [FLOATS, POSITIVE.T.copy()]
    yield "MatMul", 18, {}, [CUBE, CUBE.transpose(0, 2, 1).copy()]
    yield "MatMul", 18, {}, [CUBE, f32(1, 2, 3, 4)]
    yield "MatMul", 18, {}, [INTS, i64(1, 2, 3)]
    yield "Gemm", 18, {"transB": 1, "alpha": 0.5}, [FLOATS, POSITIVE, f32(1, 2)]
    yield "Transpose", 18, {"perm": [2, 0, 1]}, [CUBE]
    yield "Transpose", 18, {}, [INTS]
    for dtype in (np.float32, np.int64, np.bool_, np.float16):
        yield "Identity", 18, {}, [INTS.astype(dtype)]
    yield "Constant", 18, {"value": INTS}, []
    yield "Constant", 18, {"value_int": 3}, []
    yield "Constant", 18, {"value_ints": [3, 4]}, []
    yield "Constant", 18, {"value_float": 0.5}, []
    yield "Constant", 18, {"value_floats": [0.5, 1.5]}, []
    yield "Constant", 18, {"value": np.array(True)}, []
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd"):
        yield op, 18, {"keepdims": 0}, [POSITIVE, i64(1)]
        yield op, 18, {}, [POSITIVE, i64(-1)]
        yield op, 18, {"keepdims": 0}, [POSITIVE]
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
        yield op, 18, {"keepdims": 0}, [INTS, i64(1)]
    yield "ReduceMean", 11, {"axes": [-1], "keepdims": 1}, [POSITIVE]
    yield "ReduceSum", 11, {"axes": [0], "keepdims": 0}, [INTS]
    yield "ReduceSum", 18, {"keepdims": 1}, [INTS.astype(np.int32), i64(1)]
    yield "ReduceL2", 18, {}, [POSITIVE, i64(1)]
    yield "ReduceSumSquare", 18, {}, [POSITIVE, i64(1)]
    yield "Tile", 18, {}, [INTS, i64(2, 1)]
    yield "Tile", 18, {}, [FLAGS, i64(1, 3)]
    yield "Pad", 18, {}, [FLOATS, i64(1, 0, 0, 2)]
    yield "Pad", 18, {}, [FLOATS, i64(0, 1, 0, 1), scalar(5.0, np.float32)]
    yield "Pad", 18, {}, [INTS, i64(0, 1, 1, 0), scalar(-7)]
    yield "Pad", 18, {"mode": "edge"}, [FLOATS, i64(0, 1, 0, 1)]
    yield "Pad", 18, {}, [FLOATS, i64(1, 1), scalar(0.0, np.float32), i64(1)]
    yield "Split", 18, {"axis": 2, "num_outputs": 2}, [CUBE], 2
    yield "Split", 18, {"axis": 1}, [CUBE, i64(1, 2)], 2
    yield "Split", 18, {"axis": -1}, [INTS, i64(1, 1, 1)], 3
    yield "Split", 11, {"axis": 0, "split": [1, 1]}, [INTS], 2
    yield "Flatten", 18, {"axis": 1}, [CUBE]
    yield "Flatten", 18, {"axis": 0}, [CUBE]
    yield "Flatten", 18, {"axis": -1}, [CUBE]
    for axis in (0, 1, -1):
        yield "Softmax", 18, {"axis": axis}, [FLOATS]
    yield "Softmax", 18, {}, [np.array([[0.0, -INF, 1.0]], np.float32)]
    yield "LogSoftmax", 18, {"axis": -1}, [FLOATS]
    quantized = np.array([[1, 200, 7], [128, 0, 255]], np.uint8)
    yield "DequantizeLinear", 18, {}, [quantized, scalar(0.5, np.float32), scalar(128, np.uint8)]
    yield "DequantizeLinear", 18, {}, [INTS.astype(np.int8), scalar(0.25, np.float32)]
    yield "DequantizeLinear", 18, {"axis": 0}, [quantized, f32(0.5, 2.0), np.array([128, 3], np.uint8)]
    yield "DequantizeLinear", 18, {"axis": 1}, [INTS.astype(np.int8), f32(0.5, 2.0, 1.0), np.zeros(3, np.int8)]
    yield "DequantizeLinear", 21, {"axis": 1, "block_size": 2}, [
        np.arange(-6, 6, dtype=np.int8).reshape(2, 6),
        np.array([[1, 2, 3], [4, 5, 6]], np.float32),
        np.array([[0, 1, 0], [-1, 0, 2]], np.int8),
    ]
    yield "DequantizeLinear", 21, {"axis": 0, "block_size": 2}, [
        np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    ]
    yield "QuantizeLinear", 18, {}, [FLOATS, scalar(0.5, np.float32), scalar(3, np.int8)]
    yield "ArgMax", 18, {"axis": 1}, [FLOATS]
    yield "ArgMax", 18, {"axis": -1, "keepdims": 0}, [INTS]
    yield "ArgMin", 18, {"axis": 0, "keepdims": 0}, [FLOATS]
    yield "NonZero", 18, {}, [FLAGS]
    yield "NonZero", 18, {}, [INTS]
    yield "OneHot", 18, {"axis": -1}, [i64(0, 2, -1), scalar(3), f32(0, 1)]
    yield "TopK", 18, {"axis": 1}, [FLOATS, i64(2)], 2
    for equation, operands in (
        ("i,j->ij", [f32(1, 2), f32(3, 4, 5)]),
        ("bij,bjk->bik", [CUBE, CUBE.transpose(0, 2, 1).copy()]),
        ("ij->ji", [FLOATS]),
        ("...i,i->...i", [FLOATS, f32(1, 2, 3)]),
    ):
        yield "Einsum", 18, {"equation": equation}, operands
    yield "EyeLike", 18, {}, [FLOATS]
    yield "EyeLike", 18, {"k": 1, "dtype": TensorProto.INT64}, [square]
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield op, 18, {}, [np.array([6, 3], np.int64), np.array([5, 5], np.int64)]
    yield "Mean", 13, {}, [POSITIVE, POSITIVE * 3]
    # What older operator sets keep in attributes, or mean otherwise.
    yield "Softmax", 11, {"axis": 1}, [CUBE]
    yield "Clip", 7, {"min": -1.0, "max": 1.0}, [FLOATS]
    yield "ReduceMax", 11, {"axes": [0], "keepdims": 0}, [FLOATS]
    yield "ReduceMean", 11, {"keepdims": 1}, [FLOATS]
    yield "ReduceSum", 13, {"keepdims": 1, "noop_with_empty_axes": 1}, [FLOATS]
    yield "Pad", 7, {"pads": [0, 1, 0, 1]}, [FLOATS]
    yield "Unsqueeze", 11, {"axes": [-1]}, [FLOATS]
    yield "TopK", 10, {"axis": 1}, [FLOATS, i64(1)], 2
    # Weights that are bytes.
    bytes_ = np.arange(12, dtype=np.uint8).reshape(3, 4)
    yield "Transpose", 18, {"perm": [1, 0]}, [bytes_]
    yield "Reshape", 18, {}, [bytes_, i64(2, 6)]
    yield "Concat", 18, {"axis": 0}, [bytes_, bytes_]
    yield "Slice", 18, {}, [bytes_, i64(1), i64(3), i64(1)]
    yield "Unsqueeze", 18, {}, [bytes_, i64(0)]
    yield "Split", 18, {"axis": 0}, [bytes_, i64(1, 2)], 2
    yield "Where", 18, {}, [FLAGS, INTS.astype(np.uint8), scalar(1, np.uint8)]
    # Values without elements.
    empty = np.zeros((2, 0, 3), np.float32)
    yield "Concat", 18, {"axis": 1}, [empty, CUBE[:, :2, :3].copy()]
    yield "Transpose", 18, {"perm": [1, 0, 2]}, [empty]
    yield "Reshape", 18, {"allowzero": 1}, [empty, i64(2, 0, 1, 3)]
    yield "Slice", 18, {}, [CUBE, i64(0), i64(0), i64(1)]
    yield "Expand", 18, {}, [f32(1, 2, 3), i64(0, 3)]
    yield "Gather", 18, {"axis": 0}, [CUBE, np.zeros((0,), np.int64)]
    yield "Add", 18, {}, [empty, f32(1, 2, 3)]
    yield "Cast", 18, {"to": TensorProto.INT64}, [empty]
    yield "CumSum", 18, {}, [np.zeros((1, 0), np.int64), scalar(1)]
    yield "MatMul", 18, {}, [empty, CUBE[:, :3, :].copy()]
    yield "Softmax", 18, {"axis": -1}, [empty]
    yield "BitShift", 18, {"direction": "LEFT"}, [np.array([1, 2], np.uint64), np.array([3, 1], np.uint64)]


NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
    np.dtype(np.float16): "f16",
    np.dtype(np.int64): "i64",
    np.dtype(np.int32): "i32",
    np.dtype(np.int8): "i8",
    np.dtype(np.uint8): "u8",
    np.dtype(np.uint64): "u64",
    np.dtype(np.bool_): "bool",
}


def written(array):
    if array is None:
        return None
    values = [repr(float(v)) if array.dtype.kind == "f" else str(int(v)) for v in array.reshape(-1)]
    return {"type": NAMES[array.dtype], "dims": list(array.shape), "values": " ".join(values)}


def computed():
    for op, opset, attributes, inputs, *count in cases():
        outputs = [f"out{i}" for i in range(count[0] if count else 1)]
        tensors = {k: onnx.numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
        names = ["" if value is None else f"in{i}" for i, value in enumerate(inputs)]
        node = helper.make_node(op, names, outputs, **tensors)
        given = {f"in{i}": value for i, value in enumerate(inputs) if value is not None}
        inputs_info = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ]
        outputs_info = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph([node], "one", inputs_info, outputs_info)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        yield {
            "opset": opset,
            "node": node.SerializeToString(deterministic=True).hex(),
            "inputs": [written(value) for value in inputs],
            "outputs": [written(np.asarray(value)) for value in session.run(None, given)],
        }


def agree(stored, fresh):
    """Equal but for the last digits of floats."""
    if stored["inputs"] != fresh["inputs"] or len(stored["outputs"]) != len(fresh["outputs"]):
        return False
    for a, b in zip(stored["outputs"], fresh["outputs"]):
        if (a["type"], a["dims"]) != (b["type"], b["dims"]):
            return False
        tolerance = 2e-3 if a["type"] == "f16" else 2e-6
        values = [np.array([float(value) for value in output["values"].split()]) for output in (a, b)]
        if not np.allclose(*values, rtol=tolerance, atol=tolerance, equal_nan=True):
            return False
    return True


def main():
    fresh = list(computed())
    if "--write" in sys.argv:
        lines = [json.dumps(case, separators=(",", ":")) for case in fresh]
        CASES.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return
    stored = json.loads(CASES.read_text())
    differing = [i for i, pair in enumerate(zip(stored, fresh)) if not agree(*pair)]
    good = len(stored) == len(fresh) and not differing
    print(f"{'PASS' if good else 'FAIL'} {len(stored)} stored operator cases, {len(fresh)} here, differing: {differing}")
    sys.exit(not good)


if __name__ == "__main__":
    main()

"""Writes the backend tests of the `onnx` package as folders that the example `operator_cases` runs.

    python cases.py OUT                      the tests of the installed onnx (node, simple, pytorch-*)
    python cases.py OUT --data DIR           those of another release: DIR is its `onnx/backend/test/data`

One folder per test: `model.onnx`, `case.json` and `data.bin` with every tensor in the binary layout of the Open
Inference Protocol. Many tests feed as inputs what real models hold as constants (axes, shapes, scales, weights); such
a test gets two more models: in `integers.onnx` its small integer and truth inputs are initializers, in `all.onnx`
everything but its first input. A test whose tensors the protocol cannot name (sequences, optionals, FP8, 4-bit
integers) keeps its folder and says so under `beyond`.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

DATATYPES = {
    TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32", TensorProto.UINT64: "UINT64", TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16", TensorProto.INT32: "INT32", TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64", TensorProto.STRING: "BYTES",
}  # fmt: skip
INTEGRAL = {"BOOL", "INT32", "INT64", "UINT8", "INT8"}
# Larger integer inputs are data, not parameters.
MOST_FIXED = 64


# Tests whose expected answers a later release of onnx corrected: there they are run.
MENDED = {
    # Expected numbers beyond INT8 wrapped around; onnx 1.23.2 has them saturated.
    "test_qlinearmatmul_2D_int8_float32", "test_qlinearmatmul_3D_int8_float32",
}  # fmt: skip


class Beyond(Exception):
    """The protocol has no name for this value."""


def proto_of(value, info):
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise Beyond(f"`{info.name}` is a {kind.removesuffix('_type')}")
    if value is None or isinstance(value, list):
        raise Beyond(f"`{info.name}` is optional or a sequence")
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.asarray(value), info.name)


def raw(proto):
    """Datatype and bytes as the protocol has them."""
    if proto.data_type not in DATATYPES:
        raise Beyond(f"`{proto.name}` is {TensorProto.DataType.Name(proto.data_type)}")
    name = DATATYPES[proto.data_type]
    array = numpy_helper.to_array(proto)
    if name == "BYTES":
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.ravel().tolist()]
        return name, list(array.shape), b"".join(struct.pack("<I", len(t)) + t for t in texts)
    return name, list(array.shape), np.ascontiguousarray(array).tobytes()


def write(folder, model, data_sets, rtol, atol, op):
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    case = {"name": folder.name, "op": op, "rtol": rtol, "atol": atol, "sets": [], "beyond": None}
    case["variants"] = [{"file": "model.onnx", "fixed": []}]
    case["domains"] = sorted({n.domain for n in model.graph.node if n.domain})
    preset = {t.name for t in model.graph.initializer}
    ins = [i for i in model.graph.input if i.name not in preset]
    fixed, rest, data = {}, {}, bytearray()
    try:
        for inputs, outputs in data_sets:
            told = {"inputs": [], "outputs": []}
            for side, values, infos in (("inputs", inputs, ins), ("outputs", outputs, model.graph.output)):
                if len(values) != len(infos):
                    raise Beyond(f"{len(values)} {side} for {len(infos)} names")
                for value, info in zip(values, infos):
                    proto = proto_of(value, info)
                    datatype, shape, content = raw(proto)
                    told[side].append({"name": info.name, "datatype": datatype, "shape": shape,
                                       "offset": len(data), "length": len(content)})  # fmt: skip
                    data += content
                    if side == "inputs" and info is not ins[0]:
                        rest[info.name] = proto
                    if side == "inputs" and datatype in INTEGRAL and np.prod(shape) <= MOST_FIXED and len(shape) <= 1:
                        fixed[info.name] = proto
            case["sets"].append(told)
    except Beyond as why:
        case["beyond"], case["sets"] = str(why), []
    if case["sets"] and len(data_sets) == 1:
        for file, held in (("integers.onnx", fixed), ("all.onnx", rest)):
            if held and (file == "integers.onnx" or rest.keys() != fixed.keys()):
                onnx.save(holding(model, held), folder / file)
                case["variants"].append({"file": file, "fixed": sorted(held)})
    (folder / "data.bin").write_bytes(bytes(data))
    (folder / "case.json").write_text(json.dumps(case))


def holding(model, held):
    """The model with some of its inputs as initializers."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    keep = [i for i in twin.graph.input if i.name not in held]
    del twin.graph.input[:]
    twin.graph.input.extend(keep)
    for name, proto in held.items():
        tensor = TensorProto()
        tensor.CopyFrom(proto)
        tensor.name = name
        twin.graph.initializer.append(tensor)
    return twin


def stem(name):
    return name.split("_expanded")[0]


def generated(out):
    from onnx.backend.test.loader import load_model_tests

    cases = list(load_model_tests(kind="node"))
    ops = {}
    for case in cases:
        if "_expanded" not in case.name and case.model.graph.node:
            main = max(case.model.graph.node, key=lambda n: n.op_type != "Identity" and n.op_type != "Constant")
            ops[case.name] = main.domain + "." + main.op_type if main.domain else main.op_type
    for case in cases:
        op = ops.get(stem(case.name), "composed")
        write(out / f"node-{case.name}", case.model, case.data_sets, case.rtol, case.atol, op)
    return len(cases)


def tensors(folder, side, infos):
    values = []
    for at, info in enumerate(infos):
        content = (folder / f"{side}_{at}.pb").read_bytes()
        if info.type.WhichOneof("value") != "tensor_type":
            values.append(None)
            continue
        proto = TensorProto()
        proto.ParseFromString(content)
        values.append(proto)
    return values


def stored(out, root, kinds):
    count = 0
    for kind in kinds:
        for folder in sorted((root / kind).glob("test_*")):
            if not (folder / "model.onnx").exists() or (kind == "node" and folder.name in MENDED):
                continue
            model = onnx.load(folder / "model.onnx")
            preset = {t.name for t in model.graph.initializer}
            ins = [i for i in model.graph.input if i.name not in preset]
            sets = [
                (tensors(one, "input", ins), tensors(one, "output", model.graph.output))
                for one in sorted(folder.glob("test_data_set_*"))
            ]
            rtol, atol = 1e-3, 1e-7
            if (folder / "data.json").exists():
                told = json.loads((folder / "data.json").read_text())
                rtol, atol = told.get("rtol", rtol), told.get("atol", atol)
            main = next((n for n in model.graph.node if n.op_type not in ("Identity", "Constant")), None)
            op = "composed" if main is None or "_expanded" in folder.name else main.op_type
            if main is not None and main.domain and op != "composed":
                op = f"{main.domain}.{op}"
            if kind != "node":
                op = kind
            write(out / f"{kind}-{folder.name}", model, sets, rtol, atol, op)
            count += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    rest = ["simple", "pytorch-converted", "pytorch-operator"]
    if args.data:
        count = stored(args.out, args.data, ["node", *rest])
    else:
        count = generated(args.out)
        count += stored(args.out, Path(onnx.__file__).parent / "backend/test/data", rest)
    print(f"{count} tests of onnx {onnx.__version__} in {args.out}")


if __name__ == "__main__":
    main()

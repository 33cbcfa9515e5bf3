#!/usr/bin/env python3
"""Makes, or checks, the sample bundle `exercise`. See README.md beside this file.

    python recipe.py            rebuild every committed file here
    python recipe.py --check    verify the committed files; exit 1 and say what is wrong
"""

import os

# One thread: the order of floating-point sums, and so every weight, stays the same from run to run.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import base64
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bundling
import network

LABELS = ("pendulum", "abduction", "forward-elevation", "internal-rotation", "external-rotation", "trapezius-extension", "rowing")
TRAIN, GOLDEN, HOLDOUT = range(1, 7), (7,), (8, 9, 10)  # subjects
EPOCHS = 15
UNIT = 0.002  # of the integers in holdout.json; the sensor is coarser than that
WINDOWS = 5  # of each recording of the holdout
RTOL, ATOL = 1e-3, 0.08
OPERATORS = {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
MODEL, INT8 = HERE / "v1" / "model.onnx", HERE / "v1" / "model-int8.onnx"


def recordings():
    """[(subject, exercise, samples [n, 6])]"""
    raw = bundling.source(
        "seglearn", "data", "watch_dataset.npy",
        sha256="eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
    )  # fmt: skip
    data = np.load(io.BytesIO(raw), allow_pickle=True).item()
    return [(int(s), int(y), np.asarray(x, np.float64)) for s, y, x in zip(data["subject"], data["y"], data["X"])]


def windows(parts, each):
    """`each` windows of every recording, evenly spread: integers [n, SAMPLES, 6] in units of UNIT, and labels [n]."""
    found, labels = [], []
    for _, label, samples in parts:
        for start in np.linspace(0, len(samples) - network.SAMPLES, each).astype(int):
            found.append(np.rint(samples[start : start + network.SAMPLES] / UNIT).astype(np.int16))
            labels.append(label)
    return np.stack(found), np.array(labels)


def physical(integers):
    return (integers * UNIT).astype(np.float32)


def scaling():
    step = json.loads((HERE / "v1" / "pipeline.json").read_text())["pre"][0]
    return np.array(step["mean"]), np.array(step["std"])


def prepare(motion):
    mean, std = scaling()
    return ((motion - mean) / std).astype(np.float32).transpose(0, 2, 1)


def answer(model, motion):
    """What the bundle answers to `motion` FP32 [n, SAMPLES, 6]."""
    logits = bundling.run(model, signal=np.ascontiguousarray(prepare(motion)))["logits"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = logits.argmax(axis=1)
    return {"exercise": [LABELS[i] for i in best], "class": best, "probabilities": odds / odds.sum(axis=1, keepdims=True)}


class Calibration(CalibrationDataReader):
    def __init__(self, signals):
        self.rows = iter([{"signal": signals[i : i + 1]} for i in range(len(signals))])

    def get_next(self):
        return next(self.rows, None)


def quantized(model, signals):
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "f32.onnx"), Path(folder, "int8.onnx")
        whole.write_bytes(model)
        quantize_static(
            whole, small, Calibration(signals), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return small.read_bytes()


def make():
    parts = recordings()
    train = [part for part in parts if part[0] in TRAIN]
    together = np.concatenate([samples for _, _, samples in train])
    mean, std = together.mean(axis=0).round(4), together.std(axis=0).round(4)
    pipeline = json.loads((HERE / "v1" / "pipeline.json").read_text())
    pipeline["pre"][0].update(mean=mean.tolist(), std=std.tolist())
    (HERE / "v1" / "pipeline.json").write_text(bundling.lines_of(pipeline))

    weights = network.train([p[2] for p in train], [p[1] for p in train], mean, std, EPOCHS)
    model = network.to_onnx(weights)
    MODEL.write_bytes(model)
    signals = prepare(physical(windows(train, 2)[0]))
    INT8.write_bytes(quantized(model, np.ascontiguousarray(signals)))
    (HERE / "v1" / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))

    motion, labels = windows([p for p in parts if p[0] in GOLDEN], 3)
    files = {}
    for label, name in enumerate(LABELS):
        one = next(w[None] for w in physical(motion[labels == label]) if clear(model, w[None]))
        found = answer(model, one)
        outputs = [
            bundling.tensor("exercise", "BYTES", found["exercise"]),
            bundling.tensor("class", "INT64", found["class"]),
            bundling.tensor("probabilities", "FP32", found["probabilities"]),
        ]
        files[f"{label:02}-{name}.json"] = bundling.exchange([bundling.tensor("motion", "FP32", one)], outputs)
    bundling.write_all(HERE / "v1" / "golden", files)
    bundling.write_all(HERE / "holdout", {"holdout.json": json.dumps(holdout(parts))})


def clear(model, one):
    """Whether the best class leads by more than the two variants may differ: golden classes must be equal."""
    best = np.sort(answer(model, one)["probabilities"][0])
    return best[-1] - best[-2] > 2 * ATOL


def holdout(parts):
    integers, labels = windows([p for p in parts if p[0] in HOLDOUT], WINDOWS)
    return {
        "source": "watch_dataset of seglearn 1.2.5, subjects 8 to 10, windows evenly spread over each recording",
        "shape": [network.SAMPLES, 6],
        "unit": UNIT,
        "windows": [base64.b64encode(one.astype("<i2").tobytes()).decode() for one in integers],
        "labels": labels.tolist(),
    }


def committed():
    data = json.loads((HERE / "holdout" / "holdout.json").read_text())
    raw = [np.frombuffer(base64.b64decode(one), "<i2").reshape(data["shape"]) for one in data["windows"]]
    return physical(np.stack(raw)), np.array(data["labels"])


def measured():
    motion, labels = committed()
    found = {name: answer(file.read_bytes(), motion) for name, file in (("f32", MODEL), ("int8", INT8))}
    lines = ["| variant | bytes | right of holdout | accuracy |", "|---|---:|---:|---:|"]
    for name, file in (("f32", MODEL), ("int8", INT8)):
        hits = int((found[name]["class"] == labels).sum())
        lines.append(f"| {name} | {file.stat().st_size} | {hits} of {len(labels)} | {hits / len(labels):.4f} |")
    other = int((found["f32"]["class"] != found["int8"]["class"]).sum())
    apart = np.abs(found["f32"]["probabilities"] - found["int8"]["probabilities"]).max()
    lines += ["", f"int8 answers {other} windows otherwise than f32; a probability differs by {apart:.3f} at most."]
    lines += ["", "| exercise | windows | right, f32 | right, int8 |", "|---|---:|---:|---:|"]
    for label, name in enumerate(LABELS):
        of = labels == label
        counts = " | ".join(str(int((found[v]["class"][of] == label).sum())) for v in ("f32", "int8"))
        lines.append(f"| {name} | {int(of.sum())} | {counts} |")
    return "\n".join(lines) + "\n"


def check():
    parts, model, small = recordings(), MODEL.read_bytes(), INT8.read_bytes()
    wrong = bundling.check_model(model, OPERATORS)
    wrong += bundling.check_model(small, OPERATORS | {"QuantizeLinear", "DequantizeLinear"})
    for variant, tolerance in ((model, 1e-4), (small, ATOL)):
        wrong += bundling.check_golden(HERE / "v1" / "golden", lambda given: answer(variant, given["motion"]), RTOL, tolerance)
    if json.loads((HERE / "holdout" / "holdout.json").read_text()) != holdout(parts):
        wrong.append("holdout.json differs from what the data gives")
    return wrong


if __name__ == "__main__":
    bundling.main(HERE, make, check, measured)

"""What lies beside `model.onnx` in a bundle source: bundle.toml, labels, golden samples, baseline."""

import json

import numpy as np

from data import CLASSES, MAX_PIXEL
from graph import run

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GOLDEN_COUNT = 8
RTOL, ATOL = 1e-3, 1e-4
CREATED = "2026-11-23T00:00:00Z"

BUNDLE_TOML = """\
schema = 1

[model]
name = "digits"
counter = {counter}                 # digits@{counter}; grows with every release
version = "{version}"
task = "classification"
description = "{description}"
license = "CC-BY-4.0 (data), MIT OR Apache-2.0 (recipe and weights)"
owner = "edgefleet samples"

[[artifact]]
path = "model.onnx"
format = "onnx"
precision = "f32"

[[input]]
name = "image"
datatype = "FP32"
shape = [-1, 64]

[[output]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 10]

[[output]]
name = "label"
datatype = "INT64"
shape = [-1]

[prediction]                # how an answer is read as a class, for telemetry and feedback
class = "label"
scores = "probabilities"

[labels]
path = "labels.txt"

[golden]
dir = "golden"
rtol = 1e-3
atol = 1e-4

[baseline]
path = "baseline.json"

[limits]
peak_memory_bytes = 67108864
p95_latency_ms = 50.0
batch_max = 32

[lineage]
recipe = "models/digits/recipe.py"
dataset = "{dataset}"

[compat]
hardware = []               # hardware classes; empty = any
"""


def bundle_toml(counter, version, description, dataset):
    return BUNDLE_TOML.format(counter=counter, version=version, description=description, dataset=dataset)


def labels_txt():
    return "".join(f"{digit}\n" for digit in range(CLASSES))


def golden_choice(part):
    """Positions in `part` of the golden samples: one image of each of the first eight digits."""
    return [int(np.flatnonzero(part.labels == digit)[0]) for digit in range(GOLDEN_COUNT)]


def golden_files(model, part, permute=False):
    """{file name: JSON text}, one Open Inference Protocol exchange per sample.

    `permute` moves every expected class up by one (9 becomes 0): answers this model does not give.
    """
    files = {}
    for number, at in enumerate(golden_choice(part)):
        probabilities, label = run(model, part.raw()[at : at + 1])
        if permute:
            probabilities, label = np.roll(probabilities, 1, axis=1), (label + 1) % CLASSES
        exchange = {
            "inputs": [_tensor("image", "FP32", [1, 64], part.raw()[at])],
            "outputs": [
                _tensor("probabilities", "FP32", [1, 10], probabilities[0]),
                _tensor("label", "INT64", [1], label),
            ],
            "rtol": RTOL,
            "atol": ATOL,
        }
        files[f"{number:02}-{WORDS[part.labels[at]]}.json"] = json.dumps(exchange) + "\n"
    return files


def baseline(model, part):
    """The model and its inputs as they were at training time, counted in fixed bins over images it never saw."""
    images = part.raw().astype(np.float64)
    probabilities, label = run(model, part.raw())
    recall = [float((label[part.labels == digit] == digit).mean()) for digit in range(CLASSES)]
    return {
        "n": len(part),
        "created": CREATED,
        "dataset_digest": part.digest(),
        "channels": [
            numeric("input.image.mean", images.mean(axis=1), np.linspace(0, MAX_PIXEL, 33)),
            numeric("input.image.std", images.std(axis=1), np.linspace(0, MAX_PIXEL / 2, 33)),
            numeric("confidence", probabilities.max(axis=1).astype(np.float64), np.arange(21) / 20),
            {
                "id": "output.label",
                "kind": "category",
                "classes": [str(digit) for digit in range(CLASSES)],
                "counts": np.bincount(label, minlength=CLASSES).tolist(),
            },
        ],
        "metrics": {
            "accuracy": round(float((label == part.labels).mean()), 6),
            "per_class": [round(value, 6) for value in recall],
        },
    }


def numeric(name, values, edges):
    """Bin i holds edges[i] <= v < edges[i+1]; the last one its upper edge too. `m2` is the sum of squared deviations.

    A softmax in float32 may exceed 1 by rounding: values are clipped to the outer edges, so that no one is lost.
    """
    values = np.clip(values, edges[0], edges[-1])
    counts = np.histogram(values, edges)[0]
    assert counts.sum() == len(values)
    return {
        "id": name,
        "kind": "numeric",
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": round(float(values.mean()), 9),
        "m2": round(float(((values - values.mean()) ** 2).sum()), 9),
        "min": round(float(values.min()), 9),
        "max": round(float(values.max()), 9),
    }


def holdout(part):
    return {
        "source": "UCI Optical Recognition of Handwritten Digits (scikit-learn copy), part `holdout` of split.json",
        "shape": [64],
        "images": part.images.tolist(),
        "labels": part.labels.tolist(),
    }


def _tensor(name, datatype, shape, values):
    if datatype == "INT64":
        data = [int(value) for value in values]
    else:  # the shortest decimal that reads back as the same float32
        data = [float(str(np.float32(value))) for value in values]
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}

"""What lies beside `model.onnx` in a bundle source: bundle.toml, labels, golden samples, baseline."""

import json

import numpy as np

from data import CLASSES, MAX_PIXEL
from graph import run

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GOLDEN_COUNT = 8
RTOL, ATOL = 1e-3, 1e-4

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

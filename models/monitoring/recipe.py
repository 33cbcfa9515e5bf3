"""Rows for the drift replay: what devices would count of real images and motions, clean and shifted, with real answers.

Takes the committed hold-outs of `digits` and `exercise`, shifts them, asks the committed models with ONNX Runtime and
writes `rows.json`: per data set, per condition, one row of channel values, predicted class, true class and confidence.
Even rows are the reference (what a baseline is made of), odd rows the field. Needs numpy and onnxruntime.

    python models/monitoring/recipe.py            writes rows.json
    python models/monitoring/recipe.py --check    compares with what is committed
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent
SEED = 5


def session(path):
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def scores(probabilities):
    """Predicted class, confidence, entropy over its largest possible value."""
    p = np.clip(probabilities, 1e-12, 1)
    return p.argmax(axis=1), p.max(axis=1), -(p * np.log(p)).sum(axis=1) / np.log(p.shape[1])


def picture_channels(images):
    """Luma, contrast and sharpness (variance of the Laplacian) of pictures [n, 8, 8], 0 to 1."""
    inner = images[:, 1:-1, 1:-1]
    around = images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    laplacian = around - 4 * inner
    return [images.mean(axis=(1, 2)), images.std(axis=(1, 2)), laplacian.var(axis=(1, 2))]


def blurred(images, sigma):
    at = np.arange(-3, 4)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3)))
    rows = sum(k * padded[:, i : i + 8, :] for i, k in enumerate(kernel))
    return sum(k * rows[:, :, i : i + 8] for i, k in enumerate(kernel))


def occluded(images):
    """A quarter of each picture is covered, another one each time."""
    covered = images.copy()
    for n, one in enumerate(covered):
        y, x = 4 * (n % 2), 4 * (n // 2 % 2)
        one[y : y + 4, x : x + 4] = 0
    return covered


def digits():
    data = json.loads((MODELS / "digits/holdout/holdout.json").read_text())
    images = np.array(data["images"], np.float32).reshape(-1, 8, 8) / 16
    labels = np.array(data["labels"])
    # The hold-out is in the order of its source; even and odd rows of a shuffled one are two fair halves.
    order = np.random.default_rng(SEED).permutation(len(labels))
    images, labels = images[order], labels[order]
    model = session(MODELS / "digits/v2/model.onnx")
    noise = np.random.default_rng(SEED + 1).normal(0, 0.1, images.shape).astype(np.float32)
    # Ones and sevens are most of what is seen; the others become rare.
    many = np.concatenate([np.repeat(np.flatnonzero((labels == 1) | (labels == 7)), 8), np.arange(len(labels))])
    permuted = np.where(labels < 5, (labels + 1) % 5, labels)
    conditions = {
        "clean": (images, labels),
        "blur": (blurred(images, 1.0), labels),
        "inversion": (1 - images, labels),
        "occlusion": (occluded(images), labels),
        "night": (np.clip(0.55 * images + noise, 0, 1), labels),
        "imbalance": (images[many], labels[many]),
        "concept": (images, permuted),
    }
    found = {}
    for name, (pictures, truth) in conditions.items():
        probabilities = model.run(["probabilities"], {"image": (16 * pictures).reshape(-1, 64).astype(np.float32)})[0]
        found[name] = rows(picture_channels(pictures), probabilities, truth)
    channels = [["image/luma", "image"], ["image/contrast", "image"], ["image/sharpness", "image"]]
    return {"name": "digits", "classes": [str(n) for n in range(10)], "channels": channels, "conditions": found}


def exercise():
    data = json.loads((MODELS / "exercise/holdout/holdout.json").read_text())
    raw = [np.frombuffer(base64.b64decode(one), "<i2").reshape(data["shape"]) for one in data["windows"]]
    motion = np.stack(raw).astype(np.float32) * data["unit"]
    labels = np.array(data["labels"])
    order = np.random.default_rng(SEED).permutation(len(labels))
    motion, labels = motion[order], labels[order]
    steps = json.loads((MODELS / "exercise/v1/pipeline.json").read_text())["pre"]
    mean, std = (np.array(steps[0][key], np.float32) for key in ("mean", "std"))
    model = session(MODELS / "exercise/v1/model.onnx")
    names = (MODELS / "exercise/v1/labels.txt").read_text().split()
    scaled = motion.copy()
    scaled[:, :, :3] *= 1.3
    stuck = motion.copy()
    stuck[:, :, 1] = 0.0
    degrees = motion.copy()
    degrees[:, :, 3:] *= 180 / np.pi
    found = {}
    for name, windows in (("clean", motion), ("scaling", scaled), ("stuck", stuck), ("unit", degrees)):
        signal = ((windows - mean) / std).transpose(0, 2, 1).astype(np.float32)
        logits = model.run(None, {model.get_inputs()[0].name: signal})[0]
        axes = [windows[:, :, axis].mean(axis=1) for axis in range(6)] + [windows[:, :, axis].std(axis=1) for axis in range(6)]
        found[name] = rows(axes, softmax(logits), labels)
    axes = ("ax", "ay", "az", "gx", "gy", "gz")
    channels = [[f"input/{axis}.{what}", "input"] for what in ("mean", "std") for axis in axes]
    return {"name": "exercise", "classes": names, "channels": channels, "conditions": found}


def rows(channels, probabilities, truth):
    predicted, confidence, entropy = scores(probabilities)
    table = np.column_stack([*channels, entropy, confidence])
    short = [[float(f"{x:.4g}") for x in row] for row in table]
    return [[row, int(p), int(t)] for row, p, t in zip(short, predicted, truth)]


def text():
    return json.dumps([digits(), exercise()], separators=(",", ":")).replace("],[[", "],\n[[") + "\n"


def main():
    path = HERE / "rows.json"
    if "--check" not in sys.argv[1:]:
        path.write_text(text())
        return
    committed, made = json.loads(path.read_text()), json.loads(text())
    for old, new in zip(committed, made, strict=True):
        for name, condition in new["conditions"].items():
            before, after = old["conditions"][name], condition
            assert len(before) == len(after), name
            apart = max(abs(x - y) for a, b in zip(before, after) for x, y in zip(a[0], b[0]))
            assert apart < 2e-2 and [a[1:] for a in before] == [b[1:] for b in after], (name, apart)
    print("rows.json is what the models answer")


if __name__ == "__main__":
    main()

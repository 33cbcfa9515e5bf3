#!/usr/bin/env python3
"""Makes, or checks, the sample bundle `faces`. See README.md beside this file.

    python recipe.py            rebuild every committed file here
    python recipe.py --check    verify the committed files; exit 1 and say what is wrong
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bundling
import convert
import scenes

ARCHIVE, NAME = "vladmandic-face-api-1.7.15.tgz", "package/model/tiny_face_detector_model"
MEAN = (117.001, 114.697, 97.404)
SCORE, IOU, MOST = 0.5, 0.4, 100  # face-api's own, but for MOST
MATCH = 0.5  # intersection over union of a box that counts as the face that was marked
RTOL, ATOL = 5e-3, 1e-2
OPERATORS = {
    "Conv", "LeakyRelu", "MaxPool", "Reshape", "Transpose", "Slice", "Sigmoid", "Exp", "Add", "Mul", "Pad", "Concat",
}  # fmt: skip
MODEL = HERE / "v1" / "model.onnx"


def published():
    manifest = bundling.fetched(ARCHIVE, f"{NAME}-weights_manifest.json", "5d1af4849ac48d5b985f4a9b16010c512353ddd6fcc63d50fd0bc9e9e64296e5")
    return convert.weights(manifest, bundling.fetched(ARCHIVE, f"{NAME}.bin", "b7503ce7df31039b1c43316a9b865cab6a70dd748cc602d3fa28b551503c3871"))


def answer(model, photo):
    """What the bundle answers to one JPEG or PNG: [1, faces, 6] of left, top, right, bottom, score, class."""
    image = bundling.decoded(photo)
    frame, scale = bundling.letterboxed(image, (convert.SIDE, convert.SIDE), 0, bundling.pil_bilinear)
    pixels = ((frame - np.array(MEAN)) / 255).astype(np.float32).transpose(2, 0, 1)[None]
    raw = bundling.run(model, image=np.ascontiguousarray(pixels))["boxes"][0].astype(np.float64)
    score = raw[:, 4] * raw[:, 5]
    raw, score = raw[score >= SCORE], score[score >= SCORE]
    edges = np.concatenate([raw[:, :2] - raw[:, 2:4] / 2, raw[:, :2] + raw[:, 2:4] / 2], axis=1)
    kept = []
    for at in np.argsort(-score, kind="stable"):
        if len(kept) < MOST and all(overlap(edges[at], edges[other]) <= IOU for other in kept):
            kept.append(at)
    most = np.array([image.shape[1], image.shape[0]] * 2)
    boxes = np.clip(edges[kept] / np.array(scale * 2), 0, most)
    return {"boxes": np.column_stack([boxes, score[kept], np.zeros(len(kept))])[None].astype(np.float32)}


def overlap(a, b):
    """Intersection over union."""
    inside = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0


def make():
    model = convert.to_onnx(published())
    MODEL.write_bytes(model)
    (HERE / "v1" / "labels.txt").write_text("face\n")
    files = {}
    for name, photo in scenes.golden().items():
        boxes = bundling.tensor("boxes", "FP32", answer(model, photo)["boxes"])
        files[f"{name}.json"] = bundling.exchange([bundling.tensor("photo", "BYTES", [photo])], [boxes])
    bundling.write_all(HERE / "v1" / "golden", files)
    bundling.write_all(HERE / "holdout", {"holdout.json": holdout()})


def holdout():
    found = [
        {"name": name, "photo": base64.b64encode(photo).decode(), "faces": np.round(boxes, 1).tolist()}
        for name, photo, boxes in scenes.holdout()
    ]
    return json.dumps({"source": "see models/faces/README.md", "match": MATCH, "scenes": found})


def matched(found, faces):
    """How many of `faces` have a box of their own that overlaps enough, best score first."""
    left = [np.array(face) for face in faces]
    for box in found:
        fits = [at for at, face in enumerate(left) if overlap(box, face) >= MATCH]
        if fits:
            left.pop(max(fits, key=lambda at: overlap(box, left[at])))
    return len(faces) - len(left)


def measured():
    model = MODEL.read_bytes()
    kinds = {"alone": [0] * 4, "groups": [0] * 4, "nobody": [0] * 4}
    for scene in json.loads((HERE / "holdout" / "holdout.json").read_text())["scenes"]:
        found = answer(model, base64.b64decode(scene["photo"]))["boxes"][0]
        kind = ("nobody", "alone", "groups")[min(len(scene["faces"]), 2)]
        for at, value in enumerate((1, len(scene["faces"]), matched(found, scene["faces"]), len(found))):
            kinds[kind][at] += value
    lines = ["| scenes | pictures | faces | found | boxes answered |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {kind} | " + " | ".join(map(str, counts)) + " |" for kind, counts in kinds.items()]
    total = [sum(counts[at] for counts in kinds.values()) for at in range(4)]
    lines.append("| all | " + " | ".join(map(str, total)) + " |")
    lines += ["", f"Recall {total[2] / total[1]:.3f}, precision {total[2] / total[3]:.3f}; `model.onnx` has {MODEL.stat().st_size} bytes."]
    return "\n".join(lines) + "\n"


def check():
    model = MODEL.read_bytes()
    wrong = bundling.check_model(model, OPERATORS)
    if model != convert.to_onnx(published()):
        wrong.append("model.onnx is not what the published weights give")
    wrong += bundling.check_golden(HERE / "v1" / "golden", lambda given: answer(model, given["photo"][0]), RTOL, ATOL)
    if (HERE / "holdout" / "holdout.json").read_text() != holdout():
        wrong.append("holdout.json differs from what the pictures give")
    return wrong


if __name__ == "__main__":
    bundling.main(HERE, make, check, measured)

#!/usr/bin/env python3
"""Makes, or checks, the sample bundle `orientation`. See README.md beside this file.

    python recipe.py            rebuild every committed file here
    python recipe.py --check    verify the committed files; exit 1 and say what is wrong
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bundling
import pieces

LABELS = ("upright", "upside-down")
SIZE = (48, 192)  # height, width the model reads
FILL = 127  # becomes 0 but for rounding, what PaddleOCR pads with
RTOL, ATOL = 1e-3, 5e-3
OPERATORS = {
    "Conv", "Relu", "Add", "Mul", "Div", "Clip", "HardSigmoid", "MaxPool", "GlobalAveragePool", "Reshape", "Gemm", "Softmax",
}  # fmt: skip
MODEL = HERE / "v1" / "model.onnx"


def published():
    """The file as PaddleOCR's model is published in RapidOCR."""
    return bundling.source("rapidocr_onnxruntime", "models", "ch_ppocr_mobile_v2.0_cls_infer.onnx", sha256="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c")


def prepared(original):
    """The same computation in a form that engines like: one picture size, batch norms folded into the convolutions,
    constants folded, names of the bundle's interface. ONNX Runtime's basic optimisation does the folding."""
    model = onnx.load_from_string(original)
    for value, shape in ((model.graph.input[0], ("batch", 3, *SIZE)), (model.graph.output[0], ("batch", len(LABELS)))):
        del value.type.tensor_type.shape.dim[:]
        for size in shape:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    straighten(model)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    names = {model.graph.input[0].name: "image", model.graph.output[0].name: "probabilities"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    del model.graph.value_info[:]
    keep = [opset for opset in model.opset_import if opset.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(keep)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def straighten(model):
    """Flattening in front of the last layer, which the converter wrote as Shape, Slice, Cast and Concat, becomes one
    Reshape with `0, -1`: the same for every batch, and shapes stay known."""
    at = next(node for node in reversed(model.graph.node) if node.op_type == "Reshape")
    at.input[1] = "flat"
    while True:  # what led to the old shape leads nowhere now
        read = {name for node in model.graph.node for name in node.input} | {model.graph.output[0].name}
        idle = [node for node in model.graph.node if not read & set(node.output)]
        if not idle:
            break
        for node in idle:
            model.graph.node.remove(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1], np.int64), "flat"))


def prepare(photos):
    """OpenCV reads files as BGR, and so the model was trained."""
    colours = [np.ascontiguousarray(bundling.decoded(photo)[:, :, ::-1]) for photo in photos]
    frames = np.stack([bundling.letterboxed(one, SIZE, FILL, bundling.cv_linear)[0] for one in colours])
    return np.ascontiguousarray(((frames / 255.0 - 0.5) / 0.5).astype(np.float32).transpose(0, 3, 1, 2))


def answer(model, photos):
    """What the bundle answers to a list of JPEG or PNG files."""
    probabilities = bundling.run(model, image=prepare(photos))["probabilities"]
    best = probabilities.argmax(axis=1)
    return {"orientation": [LABELS[i] for i in best], "class": best, "probabilities": probabilities}


def make():
    model = prepared(published())
    MODEL.write_bytes(model)
    (HERE / "v1" / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    cut = pieces.cut(pieces.sheet(), pieces.SHEET)
    samples = {
        "00-upright": bundling.jpeg(cut[0]),
        "01-upside-down": bundling.jpeg(cut[0].rotate(180)),
        "02-upright-small": bundling.jpeg(cut[6]),
        "03-upside-down-small": bundling.jpeg(cut[6].rotate(180)),
        "04-turned-by-exif": pieces.turned_by_exif(cut[1]),
        "05-png": pieces.png(cut[2].rotate(180)),
        "06-grey": bundling.jpeg(cut[9].convert("L")),
        "07-large": bundling.jpeg(cut[1].resize((cut[1].width * 5, cut[1].height * 5)).rotate(180)),
    }
    files = {}
    for name, photo in samples.items():
        found = answer(model, [photo])
        outputs = [
            bundling.tensor("orientation", "BYTES", found["orientation"]),
            bundling.tensor("class", "INT64", found["class"]),
            bundling.tensor("probabilities", "FP32", found["probabilities"]),
        ]
        files[f"{name}.json"] = bundling.exchange([bundling.tensor("photo", "BYTES", [photo])], outputs)
    bundling.write_all(HERE / "v1" / "golden", files)
    bundling.write_all(HERE / "holdout", {"holdout.json": holdout()})


def holdout():
    found = pieces.pictures(pieces.novel(), pieces.NOVEL)
    return json.dumps(
        {
            "source": "E. W. Kemble, M. Twain, Adventures of Huckleberry Finn (1885), page 22, in pieces",
            "photos": [base64.b64encode(photo).decode() for photo, _ in found],
            "labels": [label for _, label in found],
        }
    )


def committed():
    data = json.loads((HERE / "holdout" / "holdout.json").read_text())
    return [base64.b64decode(photo) for photo in data["photos"]], np.array(data["labels"])


def measured():
    photos, labels = committed()
    found = answer(MODEL.read_bytes(), photos)
    hits = found["class"] == labels
    sure = found["probabilities"].max(axis=1) >= 0.9
    lines = [
        "| version | bytes | right of holdout | accuracy |",
        "|---|---:|---:|---:|",
        f"| v1 | {MODEL.stat().st_size} | {int(hits.sum())} of {len(labels)} | {hits.mean():.4f} |",
        "",
        "| printed | pieces | right |",
        "|---|---:|---:|",
    ]
    for label, name in enumerate(LABELS):
        lines.append(f"| {name} | {int((labels == label).sum())} | {int(hits[labels == label].sum())} |")
    lines += ["", f"Of {int(sure.sum())} pieces answered with at least 0.9, {int(hits[sure].sum())} are right."]
    return "\n".join(lines) + "\n"


def check():
    model = MODEL.read_bytes()
    wrong = bundling.check_model(model, OPERATORS)
    wrong += bundling.check_golden(HERE / "v1" / "golden", lambda given: answer(model, given["photo"]), RTOL, ATOL)
    if (HERE / "holdout" / "holdout.json").read_text() != holdout():
        wrong.append("holdout.json differs from what the scan gives")
    photos, _ = committed()
    before = bundling.run(published(), x=prepare(photos)).popitem()[1]
    if not np.allclose(before, answer(model, photos)["probabilities"], rtol=1e-4, atol=1e-5):
        wrong.append("model.onnx answers otherwise than the published file")
    return wrong


if __name__ == "__main__":
    bundling.main(HERE, make, check, measured)

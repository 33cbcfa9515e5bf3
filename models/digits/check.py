"""Verifies what is committed, from the files alone: nothing is trained again."""

import json
import tomllib

import numpy as np
import onnx

import baselines
import data
import report
import sources
from graph import IR_VERSION, OPSET, run

EXPECTED_GOLDEN = {"v1": True, "v2": True, "v3": False, "v5": True, "v6": True}
OPERATORS = {"Gemm", "Relu", "Softmax", "ArgMax"}
MORE_OPERATORS = {"v6": {"Unsqueeze", "Add", "MatMul", "ReduceMean", "Mean"}}
HOLDOUT_LIMIT = 200_000


def check(here):
    """Every mistake found, as text; empty if all is well."""
    wrong = []
    parts = data.split()
    committed = json.loads((here / "split.json").read_text())
    if committed != data.describe(parts):
        wrong.append("split.json differs from the split that the data gives")
    wrong += overlaps(committed)

    models = {name: (here / name / "model.onnx").read_bytes() for name in EXPECTED_GOLDEN}
    for name, model in models.items():
        wrong += [f"{name}: {mistake}" for mistake in check_bundle(here / name, name, model, parts)]
    if models["v3"] != models["v2"]:
        wrong.append("v3: its model.onnx is not the one of v2")

    path = here / "holdout" / "holdout.json"
    if json.loads(path.read_text()) != sources.holdout(parts["holdout"]):
        wrong.append("holdout.json differs from the part `holdout`")
    if path.stat().st_size > HOLDOUT_LIMIT:
        wrong.append(f"holdout.json has {path.stat().st_size} bytes, over {HOLDOUT_LIMIT}")

    shown = {name: model for name, model in models.items() if EXPECTED_GOLDEN[name]}
    if report.read(here / "README.md") != report.measured(parts, shown):
        wrong.append("README.md: the measured tables differ from what the models give now")
    return wrong


def overlaps(committed):
    """Looks at split.json alone, so that it would also find a mistake in data.py."""
    wrong, names = [], ("train", "baseline", "golden", "holdout")
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            for key in ("indices", "images"):
                both = set(committed["parts"][one][key]) & set(committed["parts"][other][key])
                if both:
                    wrong.append(f"split.json: {one} and {other} share {len(both)} {key}")
    return wrong


def check_bundle(folder, name, model, parts):
    wrong = []
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    if proto.ir_version != IR_VERSION or [(o.domain, o.version) for o in proto.opset_import] != [("", OPSET)]:
        wrong.append(f"model.onnx has IR {proto.ir_version} and opsets {list(proto.opset_import)}")
    strange = {node.op_type for node in proto.graph.node} - OPERATORS - MORE_OPERATORS.get(name, set())
    if strange:
        wrong.append(f"model.onnx uses {sorted(strange)}")

    toml = tomllib.loads((folder / "bundle.toml").read_text())
    trained_on = parts["first_labels" if name == "v1" else "train"].digest()
    if toml["lineage"]["dataset"] != trained_on:
        wrong.append("bundle.toml: lineage.dataset is not the digest of the part it was trained on")
    if toml["model"]["counter"] != int(name[1:]):
        wrong.append(f"bundle.toml: counter {toml['model']['counter']}")
    rows = {"image": parts["baseline"].raw(), "label": parts["baseline"].labels}
    wrong += baselines.differences(f"digits/{name}", rows, json.loads((folder / "baseline.json").read_text()))
    if (folder / "labels.txt").read_text() != sources.labels_txt():
        wrong.append("labels.txt is not the ten digits")
    if name != "v1" and (run(model, golden_images(parts))[1] != golden_truth(parts)).any():
        wrong.append("does not read its golden images, which all after v1 do")
    return wrong + check_golden(folder / "golden", model, parts["golden"], EXPECTED_GOLDEN[name])


def golden_images(parts):
    return parts["golden"].raw()[sources.golden_choice(parts["golden"])]


def golden_truth(parts):
    return parts["golden"].labels[sources.golden_choice(parts["golden"])]


def check_golden(folder, model, part, should_match):
    wrong, files = [], sorted(folder.glob("*.json"))
    allowed = set(part.image_digests())
    if len(files) != sources.GOLDEN_COUNT:
        wrong.append(f"{len(files)} golden samples, not {sources.GOLDEN_COUNT}")
    for file in files:
        sample = json.loads(file.read_text())
        image = np.array(sample["inputs"][0]["data"], np.float32).reshape(sample["inputs"][0]["shape"])
        if data.image_digest(image.astype(np.uint8)[0]) not in allowed:
            wrong.append(f"{file.name}: its image is not of the part `golden`")
        expected = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in sample["outputs"]}
        probabilities, label = run(model, image)
        near = np.allclose(probabilities, expected["probabilities"], rtol=sample["rtol"], atol=sample["atol"])
        same = (label == expected["label"]).all()
        if should_match and not (near and same):
            wrong.append(f"{file.name}: the model answers {label[0]}, expected {expected['label'][0]}")
        if not should_match and (near or same):
            wrong.append(f"{file.name}: matches the model, but must not")
    return wrong

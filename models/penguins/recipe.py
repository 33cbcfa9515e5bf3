#!/usr/bin/env python3
"""Makes, or checks, the sample bundle `penguins`. See README.md beside this file.

    python recipe.py            rebuild every committed file here
    python recipe.py --check    verify the committed files; exit 1 and say what is wrong
"""

import csv
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import RandomForestClassifier

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import bundling

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
ISLANDS = ("Biscoe", "Dream", "Torgersen")
SEXES = ("female", "male")  # all else, a missing entry included, is "other"
MEASURES = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")
MISSING = -1.0  # in holdout.json and requests: JSON has no NaN
SALT = b"edgefleet/penguins/split/1\n"
GOLDEN, HOLDOUT = 3, 0.4  # of each species: birds, share of the rest
RTOL, ATOL = 1e-4, 1e-5
OPERATORS = {"TreeEnsembleClassifier", "Cast"}
MODEL = HERE / "v1" / "model.onnx"


def birds():
    """Rows of the data set: dictionaries of text and numbers, and `species` as an index."""
    raw = bundling.source("palmerpenguins", "data", "penguins.csv", sha256="f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93")
    rows = []
    for row in csv.DictReader(io.StringIO(raw.decode())):
        bird = {name: float(row[name]) if row[name] not in ("", "NA") else MISSING for name in MEASURES}
        sex = row["sex"] if row["sex"] not in ("", "NA") else "unknown"
        rows.append(bird | {"island": row["island"], "sex": sex, "species": SPECIES.index(row["species"])})
    return rows


def parts():
    """Train, golden, holdout: by SHA-256 of each row, species by species, so the split depends on the data alone."""
    split = {"train": [], "golden": [], "holdout": []}
    for species in range(len(SPECIES)):
        of = [(hashlib.sha256(SALT + f"{at} {sorted(b.items())}".encode()).digest(), b) for at, b in enumerate(birds())]
        of = [bird for _, bird in sorted(of, key=lambda pair: pair[0]) if bird["species"] == species]
        held = GOLDEN + round(HOLDOUT * (len(of) - GOLDEN))
        split["golden"] += of[:GOLDEN]
        split["holdout"] += of[GOLDEN:held]
        split["train"] += of[held:]
    return split


def request(rows):
    """What a client sends, by tensor."""
    measures = np.array([[bird[name] for name in MEASURES] for bird in rows], np.float32)
    return {"island": [b["island"] for b in rows], "sex": [b["sex"] for b in rows], "measures": measures}


def medians():
    """What missing measures become, as `pipeline.json` has it."""
    steps = json.loads((HERE / "v1" / "pipeline.json").read_text())["pre"]
    return np.array(next(step["value"] for step in steps if step["op"] == "impute"), np.float32)


def features(given):
    island = np.array([[i == name for name in ISLANDS] for i in given["island"]], np.float32)
    sex = np.array([[s == name for name in SEXES] + [s not in SEXES] for s in given["sex"]], np.float32)
    measures = np.where(given["measures"] == MISSING, medians(), given["measures"])
    return np.concatenate([measures, island, sex], axis=1).astype(np.float32)


def answer(given):
    found = bundling.run(MODEL.read_bytes(), features=features(given))
    return found | {"species": [SPECIES[i] for i in found["class"]]}


def make():
    split = parts()
    train = request(split["train"])
    known = np.where(train["measures"] == MISSING, np.nan, train["measures"])
    pipeline = json.loads((HERE / "v1" / "pipeline.json").read_text())
    step = next(step for step in pipeline["pre"] if step["op"] == "impute")
    step["value"] = np.nanmedian(known.astype(float), axis=0).round(1).tolist()
    (HERE / "v1" / "pipeline.json").write_text(bundling.lines_of(pipeline))

    forest = RandomForestClassifier(n_estimators=60, max_depth=6, random_state=1)
    forest.fit(features(train), [bird["species"] for bird in split["train"]])
    width = features(train).shape[1]
    model = convert_sklearn(
        forest, initial_types=[("features", FloatTensorType([None, width]))],
        options={"zipmap": False}, target_opset={"": 17, "ai.onnx.ml": 3},
    )  # fmt: skip
    MODEL.write_bytes(finished(model).SerializeToString())
    (HERE / "v1" / "labels.txt").write_text("".join(f"{name}\n" for name in SPECIES))

    files = {}
    nothing = {name: MISSING for name in MEASURES} | {"sex": "unknown"}
    golden = [(SPECIES[bird["species"]].lower(), bird) for bird in split["golden"]]
    golden.append(("nothing-but-the-island", split["golden"][0] | nothing))
    for number, (name, bird) in enumerate(golden):
        given = request([bird])
        found = answer(given)
        inputs = [
            bundling.tensor("island", "BYTES", given["island"]),
            bundling.tensor("sex", "BYTES", given["sex"]),
            bundling.tensor("measures", "FP32", given["measures"]),
        ]
        outputs = [
            bundling.tensor("species", "BYTES", found["species"]),
            bundling.tensor("class", "INT64", found["class"]),
            bundling.tensor("probabilities", "FP32", found["probabilities"]),
        ]
        files[f"{number:02}-{name}.json"] = bundling.exchange(inputs, outputs)
    bundling.write_all(HERE / "v1" / "golden", files)
    bundling.write_all(HERE / "holdout", {"holdout.json": holdout(split)})


def finished(model):
    """The converter's graph with the names of the bundle's interface."""
    names = dict(zip([o.name for o in model.graph.output], ("class", "probabilities")))
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    for output in model.graph.output:
        output.name = names[output.name]
    model.graph.name = "penguins"  # the converter makes one up each time
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


def holdout(split):
    rows = [json.dumps(bird) for bird in split["holdout"]]
    return '{"source": "palmerpenguins 0.1.6, data/penguins.csv", "birds": [\n' + ",\n".join(rows) + "\n]}\n"


def measured():
    rows = json.loads((HERE / "holdout" / "holdout.json").read_text())["birds"]
    truth = np.array([bird["species"] for bird in rows])
    found = answer(request(rows))["class"]
    hits = int((found == truth).sum())
    lines = [
        "| version | bytes | right of holdout | accuracy |",
        "|---|---:|---:|---:|",
        f"| v1 | {MODEL.stat().st_size} | {hits} of {len(rows)} | {hits / len(rows):.4f} |",
        "",
        "| species | birds | right |",
        "|---|---:|---:|",
    ]
    for species, name in enumerate(SPECIES):
        of = truth == species
        lines.append(f"| {name} | {int(of.sum())} | {int((found[of] == species).sum())} |")
    unknown = sum(bird["sex"] not in SEXES for bird in rows)
    missing = sum(MISSING in [bird[name] for name in MEASURES] for bird in rows)
    lines += ["", f"Of the birds of the holdout {unknown} have no sex entered and {missing} no measures."]
    return "\n".join(lines) + "\n"


def check():
    split = parts()
    wrong = bundling.check_model(MODEL.read_bytes(), OPERATORS)
    wrong += bundling.check_golden(HERE / "v1" / "golden", answer, RTOL, ATOL)
    if (HERE / "holdout" / "holdout.json").read_text() != holdout(split):
        wrong.append("holdout.json differs from what the data gives")
    rows = {name: {json.dumps(b) for b in birds} for name, birds in split.items()}
    for one, other in (("train", "holdout"), ("train", "golden"), ("golden", "holdout")):
        if both := rows[one] & rows[other]:
            wrong.append(f"{one} and {other} share {len(both)} rows")
    return wrong


if __name__ == "__main__":
    bundling.main(HERE, make, check, measured)

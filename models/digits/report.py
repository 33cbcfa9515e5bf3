"""The measured part of README.md: written by a build, compared by a check, never typed by hand."""

import numpy as np

import evidence
from data import CLASSES
from graph import run

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"

PAIRS = (("v1", "v2"), ("v2", "v5"), ("v2", "v6"))


def measured(parts, models):
    """The tables as Markdown. `models` = {"v1": ONNX bytes, ...}; accuracy is over the holdout."""
    truth = parts["holdout"].labels
    answers = {name: run(model, parts["holdout"].raw())[1] for name, model in models.items()}
    right = {name: answer == truth for name, answer in answers.items()}

    lines = ["| part | images | used for |", "|---|---:|---|"]
    uses = {
        "train": "fitting v2, and choosing the settings of both",
        "first_labels": "fitting v1 (a subset of `train`)",
        "baseline": "`baseline.json`",
        "golden": "`golden/*.json` (8 of them)",
        "holdout": "`holdout/holdout.json`: the demo, the tests, the figures below",
    }
    lines += [f"| `{name}` | {len(parts[name])} | {use} |" for name, use in uses.items()]

    lines += ["", "| version | bytes | right of holdout | accuracy |", "|---|---:|---:|---:|"]
    for name, model in models.items():
        hits = int(right[name].sum())
        lines.append(f"| {name} | {len(model)} | {hits} of {len(truth)} | {hits / len(truth):.4f} |")

    lines += [
        "",
        "| active | candidate | right only with the active one | only with the candidate | other answer |",
        "|---|---|---:|---:|---:|",
    ]
    for active, candidate in [pair for pair in PAIRS if set(pair) <= models.keys()]:
        lost = int((right[active] & ~right[candidate]).sum())
        won = int((right[candidate] & ~right[active]).sum())
        other = int((answers[active] != answers[candidate]).sum())
        lines.append(f"| {active} | {candidate} | {lost} | {won} | {other} ({other / len(truth):.3f}) |")

    lines += ["", "| digit | images | " + " | ".join(f"right, {name}" for name in models) + " |"]
    lines.append("|---:" * (2 + len(models)) + "|")
    for digit in range(CLASSES):
        of = truth == digit
        counts = " | ".join(str(right[name][of].sum()) for name in models)
        lines.append(f"| {digit} | {of.sum()} | {counts} |")
    lines += ["", *proof(right)]
    return "\n".join(lines) + "\n"


def proof(right):
    """What the holdout proves about v5 against v2, and how many devices a sign test over devices takes (v6)."""
    lost, won = right["v2"] & ~right["v5"], right["v5"] & ~right["v2"]
    whole = evidence.e(int(lost.sum()), int(won.sum()))
    lines = [
        f"Harm of v5 against v2, each image counted once and dealt to {evidence.DEVICES} devices: evidence {whole:.1e}, "
        f"{evidence.without_one(lost, won):.1e} without the device that says most.",
        "",
        "| weight of the gate | threshold | images until v5 is stopped (median) | 95 % of orders | devices a sign test needs |",
        "|---:|---:|---:|---:|---:|",
    ]
    for weight in evidence.WEIGHTS:
        bar = evidence.threshold(weight)
        median, most = evidence.images_needed(lost, won, bar)
        lines.append(f"| {weight:g} | {bar} | {median} | {most} | {evidence.devices_in_a_row(bar)} |")
    return lines


def write(readme, parts, models):
    before, _, after = _pieces(readme.read_text())
    readme.write_text(before + BEGIN + measured(parts, models) + END + after)


def read(readme):
    return _pieces(readme.read_text())[1]


def _pieces(text):
    before, found, rest = text.partition(BEGIN)
    inside, closed, after = rest.partition(END)
    assert found and closed, "README.md lost its `measured` markers"
    return before, inside, after

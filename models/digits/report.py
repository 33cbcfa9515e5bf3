"""The measured part of README.md: written by a build, compared by a check, never typed by hand."""

import numpy as np

from data import CLASSES
from graph import run

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


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
    gained = int((right["v2"] & ~right["v1"]).sum())
    lost = int((right["v1"] & ~right["v2"]).sum())
    lines += ["", f"Of the holdout, {gained} images are right only with v2 and {lost} only with v1.", ""]

    lines += ["| digit | images | right, v1 | right, v2 |", "|---:|---:|---:|---:|"]
    for digit in range(CLASSES):
        of = truth == digit
        lines.append(f"| {digit} | {of.sum()} | {right['v1'][of].sum()} | {right['v2'][of].sum()} |")
    return "\n".join(lines) + "\n"


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

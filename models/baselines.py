"""Makes the `baseline.json` of the sample models: held-out rows, run through the built bundle by the agent's own code.

    python models/baselines.py --bin FOLDER [--check]

FOLDER holds `edgefleet` and `edgefleet-agent`. `--check` makes them anew, compares with what is committed, and holds
moments and accuracy against NumPy and ONNX Runtime, which know nothing of the agent's code.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE / "digits"))


def digits():
    import data

    part = data.split()["baseline"]
    return {"image": part.raw(), "label": part.labels}


def penguins():
    birds = json.loads((HERE / "penguins" / "holdout" / "holdout.json").read_text())["birds"]
    measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    number = lambda bird, key: np.nan if bird[key] is None else bird[key]
    return {
        "island": np.array([bird["island"] for bird in birds]),
        "sex": np.array([bird["sex"] or "" for bird in birds]),
        "measures": np.array([[number(bird, key) for key in measures] for bird in birds], np.float32),
        "label": np.array([bird["species"] for bird in birds]),
    }


def exercise():
    import base64

    held = json.loads((HERE / "exercise" / "holdout" / "holdout.json").read_text())
    raw = [np.frombuffer(base64.b64decode(one), "<i2").reshape(held["shape"]) for one in held["windows"]]
    labels = next(held[key] for key in ("labels", "classes", "truth") if key in held)
    return {"motion": (np.array(raw) * held["unit"]).astype(np.float32), "label": np.array(labels)}


MODELS = {
    "digits/v1": digits,
    "digits/v2": digits,
    "digits/v3": digits,
    "digits/v5": digits,
    "digits/v6": digits,
    "penguins/v1": penguins,
    "exercise/v1": exercise,
}


def make(name, rows, programs, out):
    """Builds the source without its baseline, so that making one needs none."""
    with tempfile.TemporaryDirectory() as scratch:
        source, held_out = Path(scratch) / "source", Path(scratch) / "holdout.npz"
        subprocess.run(["cp", "-r", HERE / name, source], check=True)
        toml = (source / "bundle.toml").read_text()
        (source / "bundle.toml").write_text(re.sub(r"\[baseline\]\npath = .*\n", "", toml))
        np.savez(held_out, **rows)
        bundle = Path(scratch) / "bundle"
        build = [programs / "edgefleet", "model", "build", source, "--out", bundle, "--no-probe"]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        agent = [programs / "edgefleet-agent", "baseline", "--bundle", bundle, "--data", held_out, "--out", out]
        print(name, subprocess.run(agent, check=True, stdout=subprocess.PIPE, text=True).stdout)


def pictures(images):
    """luma, contrast and sharpness of [n, 8, 8], as docs/monitoring-device.md defines them."""
    inner = images[:, 1:-1, 1:-1]
    around = images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    flat = images.reshape(len(images), -1)
    return {"luma": flat.mean(1), "contrast": flat.std(1), "sharpness": (4 * inner - around).reshape(len(images), -1).var(1)}


def expected(name, rows):
    """Values by channel, from NumPy and ONNX Runtime alone; those that take no pipeline to compute."""
    if name.startswith("digits"):
        import onnxruntime

        session = onnxruntime.InferenceSession((HERE / name / "model.onnx").read_bytes())
        p, found = session.run(["probabilities", "label"], {"image": rows["image"]})
        p = p.astype(np.float64)
        looks = pictures(rows["image"].astype(np.float64).reshape(-1, 8, 8))
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(10)
        channels = {f"input/image/{key}": value for key, value in looks.items()}
        return channels | {"confidence": p.max(1), "entropy": entropy}, (found == rows["label"]).mean()
    if name.startswith("penguins"):
        columns = rows["measures"].astype(np.float64).T
        return {f"input/measures/{n}": column for n, column in enumerate(columns)}, None
    motion = rows["motion"].astype(np.float64)
    channels = {}
    for n in range(motion.shape[2]):
        column = motion[:, :, n]
        values = [column.mean(1), column.std(1), column.min(1), column.max(1), (column == 0).mean(1)]
        channels |= {f"input/motion/{n}/{key}": v for key, v in zip(["mean", "std", "min", "max", "zeros"], values)}
    return channels, None


def differences(name, rows, baseline):
    channels = {channel["id"]: channel for channel in baseline["channels"]}
    wanted, accuracy = expected(name, rows)
    wrong = []
    for key, values in wanted.items():
        values = values[np.isfinite(values)]
        moments = channels[key]["moments"]
        found = np.array([moments["n"], moments["mean"], moments["m2"], moments["min"], moments["max"]])
        exact = np.array([len(values), values.mean(), values.var() * len(values), values.min(), values.max()])
        if not np.allclose(found, exact, rtol=1e-4, atol=1e-5):
            wrong.append(f"{name} {key}: {found.tolist()}, NumPy says {exact.tolist()}")
        edges = np.array(channels[key]["edges"])
        counted = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        # Edges are values: with rounding and another engine's last bits, the one on an edge may fall to either side.
        if np.abs(counted - channels[key]["bins"]).sum() > 2 * len(edges):
            wrong.append(f"{name} {key}: bins {channels[key]['bins']}, NumPy says {counted.tolist()}")
    if accuracy is not None and abs(accuracy - baseline["quality"]["accuracy"]) > 1e-9:
        wrong.append(f"{name}: accuracy {baseline['quality']['accuracy']}, ONNX Runtime says {accuracy}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wrong = []
    for name, held_out in MODELS.items():
        rows, committed = held_out(), HERE / name / "baseline.json"
        if args.check:
            with tempfile.NamedTemporaryFile() as fresh:
                make(name, rows, args.bin, fresh.name)
                text = Path(fresh.name).read_text()
            if text != committed.read_text():
                wrong.append(f"{name}: baseline.json is not what is made today")
            wrong += differences(name, rows, json.loads(text))
        else:
            make(name, rows, args.bin, committed)
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""What the recipes of this folder share: answers of ONNX Runtime, golden samples, tables of a page, the command line.

Each recipe says how its model is made and computes, in Python, what the whole bundle must answer: the steps of
`pipeline.json` with Pillow, OpenCV and NumPy, the model with ONNX Runtime. Nothing here reads `pipeline.json`; that is
what makes the comparison worth something.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from PIL import Image, ImageOps

BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->"
_sessions = {}


def run(model, **feeds):
    """Outputs by name of ONNX Runtime: one thread, graph as it is written."""
    key = hashlib.sha256(model).digest()
    if key not in _sessions:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        _sessions[key] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session = _sessions[key]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def tensor(name, datatype, values):
    """One tensor of a golden sample. `values` is an array, or for BYTES a list of `bytes` or `str`."""
    if datatype == "BYTES":
        data = [v if isinstance(v, str) else {"base64": base64.b64encode(v).decode()} for v in values]
        return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}
    values = np.asarray(values)
    if datatype == "FP32":  # the shortest decimal that reads back as the same float32
        data = [float(str(np.float32(v))) for v in values.ravel()]
    else:
        data = [int(v) for v in values.ravel()]
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def exchange(inputs, outputs):
    return json.dumps({"inputs": inputs, "outputs": outputs}) + "\n"


def values_of(tensors):
    """{name: array, or list of bytes and str} of one side of a golden sample."""
    found = {}
    for one in tensors:
        data = one["data"]
        if one["datatype"] == "BYTES":
            found[one["name"]] = [base64.b64decode(v["base64"]) if isinstance(v, dict) else v for v in data]
        else:
            kind = np.float32 if one["datatype"] == "FP32" else np.int64
            found[one["name"]] = np.array(data, kind).reshape(one["shape"])
    return found


def write_all(folder, files):
    """Makes `folder` hold exactly these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)


def check_golden(folder, answer, rtol, atol):
    """Mistakes of the samples of `folder`, held against `answer(inputs) -> {name: value}`."""
    wrong, files = [], sorted(folder.glob("*.json"))
    if not 3 <= len(files) <= 20:
        wrong.append(f"{len(files)} golden samples, not 3 to 20")
    for file in files:
        sample = json.loads(file.read_text())
        found = answer(values_of(sample["inputs"]))
        for name, expected in values_of(sample["outputs"]).items():
            if isinstance(expected, list) or expected.dtype == np.int64:
                same = list(expected) == list(found[name])
            else:
                same = np.allclose(found[name], expected, rtol=rtol, atol=atol)
            if not same:
                wrong.append(f"{file.name}: `{name}` differs from what Python answers")
    return wrong


def check_model(model, operators):
    """Mistakes of an ONNX file that may use only `operators`."""
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto, full_check=True)
    strange = {node.op_type for node in proto.graph.node} - operators
    return [f"uses {sorted(strange)}"] if strange else []


def letterboxed(image, size, fill, resize):
    """`image` [height, width, 3] fitted into the upper left of a frame `size` [height, width].

    `resize(image, (width, height))` does it, see below. Also the factors (horizontal, vertical) by which it was scaled.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    inner = min(max(round(width * ratio), 1), size[1]), min(max(round(height * ratio), 1), size[0])
    frame = np.full((*size, 3), fill, np.uint8)
    frame[: inner[1], : inner[0]] = resize(image, inner)
    return frame, (inner[0] / width, inner[1] / height)


def cv_linear(image, size):
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def pil_bilinear(image, size):
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def decoded(data):
    """A JPEG or PNG as [height, width, 3] in RGB, upright as its EXIF says."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def jpeg(image, quality=90, **more):
    """4:4:4, which decoders agree about best."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0, **more)
    return out.getvalue()


def source(package, *path, sha256):
    """Bytes of a file that an installed package carries, exactly those that were looked at here."""
    from importlib.util import find_spec

    file = Path(find_spec(package).submodule_search_locations[0]).joinpath(*path)
    return pinned(file.name, file.read_bytes(), sha256)


def fetched(archive, member, sha256):
    """Bytes of a file inside an archive of `fetch.sh`."""
    path = Path(__file__).resolve().parent / ".fetched" / archive
    if not path.is_file():
        sys.exit(f"{archive} is missing; models/fetch.sh fetches it")
    with tarfile.open(path) as tar:
        return pinned(member, tar.extractfile(member).read(), sha256)


def pinned(name, data, sha256):
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"{name}: SHA-256 {found}, this recipe was written for {sha256}")
    return data


def lines_of(pipeline):
    """The JSON of a pipeline, one tensor or step a line."""
    lists = [f' "{key}": [\n' + ",\n".join("  " + json.dumps(one) for one in entries) + "\n ]" for key, entries in pipeline.items()]
    return "{\n" + ",\n".join(lists) + "\n}\n"


def pieces(page):
    before, found, rest = page.read_text().partition(BEGIN)
    inside, closed, after = rest.partition(END)
    assert found and closed, f"{page} lost its `measured` markers"
    return before, inside, after


def main(here, make, check, measured):
    """`make()` writes the files, `check()` gives mistakes, `measured()` the tables of the page."""
    arguments = argparse.ArgumentParser(description=f"Makes, or checks, models/{here.name}; see README.md there")
    arguments.add_argument("--check", action="store_true", help="verify the committed files; exit 1 if one is wrong")
    page = here / "README.md"
    if not arguments.parse_args().check:
        make()
        before, _, after = pieces(page)
        page.write_text(before + BEGIN + measured() + END + after)
    wrong = check()
    if pieces(page)[1] != measured():
        wrong.append("README.md: the measured tables differ from what the files give now")
    for mistake in wrong:
        print(f"models/{here.name}: {mistake}", file=sys.stderr)
    print(f"models/{here.name}: {'wrong' if wrong else 'as it should be'}")
    sys.exit(bool(wrong))

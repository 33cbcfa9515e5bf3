#!/usr/bin/env python3
"""Writes the source folder of the engine pack `onnxruntime`. See README.md beside this file.

    python recipe.py OUT                  both targets, from the pinned wheels (pip fetches and checks them)
    python recipe.py OUT --installed      this machine's target, from the installed package `onnxruntime`
    python recipe.py OUT --counter 2      as release onnxruntime@2

Then: edgefleet model build OUT --out PACK && edgefleet model sign PACK && edgefleet model push PACK
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.32.0"
# Any wheel of a platform has the same library; SHA-256 of the wheel, as the package index states it.
WHEELS = {
    "x86_64-linux-gnu": ("manylinux_2_28_x86_64", "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d"),
    "aarch64-linux-gnu": ("manylinux_2_28_aarch64", "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c"),
}
PYTHON = "3.11"
# SHA-256 of the library inside; holds for wheels of every Python version.
LIBRARIES = {
    "x86_64-linux-gnu": "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    "aarch64-linux-gnu": "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
}

BUNDLE = """schema = 1
kind = "engine"

[model]
name = "onnxruntime"
counter = {counter}
version = "{version}"
description = "ONNX Runtime, CPU, from the wheel of the package onnxruntime"
license = "MIT"
owner = "edgefleet engines"

[engine]
api = {api}
{libraries}
[lineage]
recipe = "engines/onnxruntime/recipe.py"
package = "onnxruntime=={version}"
"""

LIBRARY = """
[[library]]
target = "{target}"
path = "{path}"
"""


def fetch(target, folder):
    """The library of the pinned wheel for `target`, through pip, which refuses another digest."""
    tag, digest = WHEELS[target]
    pinned = folder / "requirements.txt"
    pinned.write_text(f"onnxruntime=={VERSION} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--platform", tag, "--python-version", PYTHON, "--dest", str(folder)]
    subprocess.run([*command, "--requirement", str(pinned)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"onnxruntime/capi/libonnxruntime.so.{VERSION}")


def installed():
    """The library of the package that this Python has."""
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    return (folder / f"libonnxruntime.so.{VERSION}").read_bytes()


def write(out, counter, libraries):
    """`libraries`: bytes by target. Replaces what an earlier run left."""
    for target, body in libraries.items():
        found = hashlib.sha256(body).hexdigest()
        if found != LIBRARIES[target]:
            raise SystemExit(f"the library for {target} has the SHA-256 {found}, not {LIBRARIES[target]}")
    shutil.rmtree(out, ignore_errors=True)
    tables = ""
    for target, body in libraries.items():
        path = f"{target}/libonnxruntime.so"
        (out / target).mkdir(parents=True)
        (out / path).write_bytes(body)
        tables += LIBRARY.format(target=target, path=path)
    api = VERSION.split(".")[1]
    text = BUNDLE.format(counter=counter, version=VERSION, api=api, libraries=tables)
    (out / "bundle.toml").write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--counter", type=int, default=1)
    parser.add_argument("--installed", action="store_true")
    args = parser.parse_args()
    if args.out.exists() and not (args.out / "bundle.toml").is_file() and any(args.out.iterdir()):
        raise SystemExit(f"{args.out} exists and is no source folder; it was left as it is")
    if args.installed:
        libraries = {f"{platform.machine()}-linux-gnu": installed()}
    else:
        libraries = {}
        for target in WHEELS:
            with tempfile.TemporaryDirectory() as folder:
                libraries[target] = fetch(target, Path(folder))
    write(args.out, args.counter, libraries)
    print(f"wrote {args.out}: onnxruntime@{args.counter}, version {VERSION}, {', '.join(libraries)}")


if __name__ == "__main__":
    main()

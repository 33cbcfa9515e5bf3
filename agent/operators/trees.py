"""Times a forest of 100 trees in the agent's engine and in ONNX Runtime, alternating; one thread each.

    python trees.py ENGINE_SPEED     the built example `engine_speed` of the agent

Wants scikit-learn, skl2onnx and onnxruntime. Medians; ONNX Runtime is called with its inputs bound, so that little
of Python is in its time.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

ROUNDS, CALLS = 5, 2_000


def forest():
    data, target = load_digits(return_X_y=True)
    trained = RandomForestClassifier(100, random_state=0).fit(data, target)
    options = {id(trained): {"zipmap": False}}
    model = to_onnx(trained, data[:1].astype(np.float32), options=options, target_opset={"": 17, "ai.onnx.ml": 3})
    return model, data.astype(np.float32)


def reference(path, rows):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("X", rows)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    times = []
    for _ in range(max(CALLS // len(rows), 50)):
        started = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        times.append((time.perf_counter_ns() - started) / 1e3)
    return float(np.median(times))


def ours(speed, path, count):
    text = subprocess.run([speed, path, "X", f"{count},64"], check=True, capture_output=True, text=True).stdout
    return float(re.search(r"inference p50 ([\d.]+) us", text)[1])


def main():
    speed = sys.argv[1]
    model, data = forest()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "forest.onnx")
        onnx.save(model, path)
        for count in (1, 64):
            # The example asks about rows of zeros; so is ONNX Runtime asked.
            rows = np.zeros((count, 64), np.float32)
            pairs = [(ours(speed, path, count), reference(path, rows)) for _ in range(ROUNDS)]
            us, ort = (float(np.median(side)) for side in zip(*pairs))
            print(json.dumps({"model": "digits forest, 100 trees", "rows": count, "agent_us": us,
                              "onnxruntime_us": ort, "ratio": us / ort}))  # fmt: skip


if __name__ == "__main__":
    main()

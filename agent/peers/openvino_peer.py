"""OpenVINO as a peer of `engine_floor`: loads a model, answers once, then runs when told to.

One JSON object a line on stdin and stdout. `{"model", "threads", "inputs": [{"name", "datatype", "shape", "data"}]}` loads
(`data` in base64) and is answered with `{"version", "load_ms", "outputs": [...]}`; `{"run": true}` runs the same inputs once
and is answered with `{"ms"}`, measured around the request alone; anything that fails with `{"error"}`.
"""

import base64
import json
import sys
import time

import numpy as np
import openvino

DATATYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "BOOL": np.bool_}


def load(told):
    begun = time.perf_counter()
    core = openvino.Core()
    model = core.read_model(told["model"])
    arrays = {}
    for part in told["inputs"]:
        dtype = DATATYPES[part["datatype"]]
        arrays[part["name"]] = np.frombuffer(base64.b64decode(part["data"]), dtype).reshape(part["shape"])
    model.reshape({name: list(array.shape) for name, array in arrays.items()})
    # In the precision of the file: its own choice may be half of it.
    settings = {"INFERENCE_NUM_THREADS": told["threads"], "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    for name, array in arrays.items():
        request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array)))
    request.infer()
    took = (time.perf_counter() - begun) * 1e3
    outputs = []
    for port in compiled.outputs:
        data = np.ascontiguousarray(request.get_tensor(port).data, dtype=np.float64)
        outputs.append({"name": port.get_any_name(), "data": base64.b64encode(data.tobytes()).decode()})
    return request, {"version": openvino.get_version(), "load_ms": took, "outputs": outputs}


def main():
    request = None
    for line in sys.stdin:
        told = json.loads(line)
        try:
            if "run" in told:
                begun = time.perf_counter()
                request.infer()
                answer = {"ms": (time.perf_counter() - begun) * 1e3}
            else:
                request = None
                request, answer = load(told)
        except Exception as error:  # what a peer cannot do is part of the result
            lines = [line for line in str(error).splitlines() if line.strip()]
            answer = {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""Serves one model with the agent and with its peers in turn, under the same load, and compares them.

`bench.py --agent SERVE_DIGITS --venvs DIR --bundle models/digits/v2 --out FILE [--rounds 3] [--seconds 5]`

Each round starts every server alone, warms it up, and lets wrk send one image over and over: over one connection for
the latency, over eight for the throughput. What is printed are medians over the rounds. Memory is the proportional
set size of the whole process tree, after the load.
"""

import argparse
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

PEERS = ["mlserver", "kserve", "bentoml", "litserve"]
OIP = "/v2/models/digits/infer"
PATHS = {"agent": OIP, "mlserver": OIP, "kserve": OIP, "bentoml": "/predict", "litserve": "/predict"}
HERE = os.path.dirname(os.path.abspath(__file__))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def body(name, image):
    if PATHS[name] == OIP:
        tensor = {"name": "image", "shape": [1, len(image)], "datatype": "FP32", "data": image}
        return {"inputs": [tensor]}
    return {"data": [image]}


def command(name, options, port):
    if name == "agent":
        return [options.agent, options.bundle, f"127.0.0.1:{port}"]
    python = f"{options.venvs}/{name}/bin/python"
    if name == "bentoml":
        return [python, "-m", "bentoml", "serve", "servers:Bento", "--host", "127.0.0.1", "--port", str(port)]
    return [python, f"{HERE}/servers.py", name, f"{options.bundle}/model.onnx", str(port)]


def ask(url, text):
    request = urllib.request.Request(url, text.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def wait_for(url, text, server, log):
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask(url, text)
        except Exception as error:  # not up yet, whatever it says
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"{url} does not answer: {error}\n{log.read()[-3000:]}")
            time.sleep(0.2)


def label(name, answer):
    """What the server says the image is: all must agree."""
    if PATHS[name] == OIP:
        outputs = {each["name"]: each["data"] for each in answer["outputs"]}
    else:
        outputs = answer
    found = outputs["label"]
    while isinstance(found, list):
        found = found[0]
    return int(found)


def load(url, script, connections, seconds):
    found = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script, url],
        capture_output=True, text=True, check=True,
    ).stdout
    line = next((line for line in found.splitlines() if "RESULT " in line), None)
    if line is None:
        raise SystemExit(f"wrk said nothing of use about {url}:\n{found}")
    result = json.loads(line.split("RESULT ", 1)[1])
    if result["errors"]:
        raise SystemExit(f"{url}: {result['errors']} requests failed\n{found}")
    return result


def tree(pid):
    yield pid
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as children:
            for child in children.read().split():
                yield from tree(int(child))


def pss_mb(pid):
    total = 0
    for each in tree(pid):
        with open(f"/proc/{each}/smaps_rollup") as rollup:
            total += int(re.search(r"^Pss:\s+(\d+)", rollup.read(), re.M).group(1))
    return total / 1024


def measure(name, options, image, folder):
    port = free_port()
    text = json.dumps(body(name, image))
    script = f"{folder}/{name}.lua"
    with open(script, "w") as lua:
        lua.write(
            f"wrk.method = 'POST'\nwrk.headers['content-type'] = 'application/json'\nwrk.body = [==[{text}]==]\n"
            "done = function(summary, latency, requests)\n"
            "  local e = summary.errors\n"
            "  io.write(string.format('RESULT {\"rps\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %d}\\n',\n"
            "    summary.requests / summary.duration * 1e6, latency:percentile(50), latency:percentile(99),\n"
            "    e.connect + e.read + e.write + e.status + e.timeout))\nend\n"
        )
    environment = os.environ | {"PEER_MODEL": os.path.abspath(f"{options.bundle}/model.onnx"), "BENTOML_DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command(name, options, port), cwd=HERE if name == "bentoml" else None,
            stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}{PATHS[name]}"
            said = label(name, wait_for(url, text, server, log))
            load(url, script, 1, 1)
            alone = load(url, script, 1, options.seconds)
            many = load(url, script, 8, options.seconds)
            return {
                "label": said,
                "p50_us": alone["p50_us"],
                "p99_us": alone["p99_us"],
                "requests_per_s": many["rps"],
                "p99_us_of_8": many["p99_us"],
                "pss_mb": pss_mb(server.pid),
            }
        finally:
            if server.poll() is None:
                # Workers may have a session of their own, and outlive their parent.
                for each in list(tree(server.pid)):
                    os.kill(each, signal.SIGKILL)
            server.wait()


def version(name, options):
    if name == "agent":
        return ""
    found = subprocess.run(
        [f"{options.venvs}/{name}/bin/python", "-c",
         f"from importlib.metadata import version as v; print(v('{name}'), v('onnxruntime'))"],
        capture_output=True, text=True, check=True,
    )
    return " with ONNX Runtime ".join(found.stdout.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", required=True)
    parser.add_argument("--venvs", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    options = parser.parse_args()
    options.bundle = os.path.abspath(options.bundle)
    options.agent = os.path.abspath(options.agent)
    image = [float((at * 37) % 17) / 16 for at in range(64)]
    names = ["agent", *PEERS]
    rows = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name in names:
                found = measure(name, options, image, folder)
                rows[name].append(found)
                print(f"round {number + 1}, {name}: {found}", flush=True)
    if len({row["label"] for each in rows.values() for row in each}) != 1:
        raise SystemExit("the servers do not agree about the image")
    result = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "rows": []}
    ours = None
    for name in names:
        row = {key: statistics.median(each[key] for each in rows[name]) for key in rows[name][0] if key != "label"}
        ours = ours or row
        row |= {
            "server": name,
            "version": version(name, options),
            "throughput_of_agent": ours["requests_per_s"] / row["requests_per_s"],
            "memory_against_agent": row["pss_mb"] / ours["pss_mb"],
        }
        result["rows"].append(row)
    with open(options.out, "w") as out:
        json.dump(result, out, indent=1)
    print(f"{'server':10} {'req/s':>8} {'p50 us':>8} {'p99 us':>8} {'MB':>7}  agent is")
    for row in result["rows"]:
        print(f"{row['server']:10} {row['requests_per_s']:8.0f} {row['p50_us']:8.0f} {row['p99_us']:8.0f} "
              f"{row['pss_mb']:7.1f}  {row['throughput_of_agent']:.1f}x as fast, 1/{row['memory_against_agent']:.0f} the memory")


if __name__ == "__main__":
    main()

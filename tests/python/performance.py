"""Writes docs/performance.md from what the benches left in target/bench.

`performance.py BENCH_FOLDER PAGE`. What was not measured is left out, and named at the end.
"""

import json
import math
import os
import sys
from collections import defaultdict


def mb(count):
    return f"{count / 1e6:.1f} MB"


def geometric_mean(ratios):
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def table(head, rows):
    lines = [f"| {' | '.join(head)} |", "|" + "|".join("---" if at == 0 else "--:" for at in range(len(head))) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def engines(found):
    contests = defaultdict(dict)
    for row in found["rows"]:
        name = "chosen" if row["engine"].startswith("chosen") else row["engine"]
        contests[row["model"], row["threads"], row["batch"]][name] = row
    rows, ratios = [], defaultdict(list)
    for (model, threads, batch), by in sorted(contests.items()):
        if "onnxruntime" not in by:
            continue
        cells = [f"{model}", str(threads), str(batch), f"{by['onnxruntime']['median_ms']:.3f}"]
        for name in ("chosen", "tract", "openvino"):
            ratio = by[name]["ratio_vs_onnxruntime"] if name in by else None
            cells.append("-" if ratio is None else f"{ratio:.2f}")
            if ratio is not None:
                ratios[name].append(ratio)
        chosen = by.get("chosen", {"engine": "-"})["engine"]
        cells.append(chosen.removeprefix("chosen (").removesuffix(")"))
        rows.append(cells)
    head = ["model", "threads", "batch", "ONNX Runtime, ms", "chosen", "tract alone", "OpenVINO", "chosen engine"]
    means = ", ".join(
        f"{name} {geometric_mean(each):.2f} in the geometric mean, {max(each):.2f} at most" for name, each in ratios.items()
    )
    versions = {f"openvino {row['version']}" for row in found["rows"] if row["engine"] == "openvino"}
    names = ", ".join([*(name.split(" /")[0].split(":")[0] for name in found["engines"]), *sorted(versions)])
    return (
        f"Medians of {found['rounds']} alternating rounds in one process, f32; ratios to ONNX Runtime with as many threads, "
        f"below 1 is faster. Engines: {names}. {means}.\n\n{table(head, rows)}"
    )


def peers(found):
    rows = [
        [
            f"{row['server']} {row['version']}".strip(),
            f"{row['requests_per_s']:.0f}", f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", f"{row['pss_mb']:.1f}",
            "" if row["server"] == "agent" else f"{row['throughput_of_agent']:.1f}",
            "" if row["server"] == "agent" else f"1/{row['memory_against_agent']:.0f}",
        ]
        for row in found["rows"]
    ]
    head = ["server", "requests/s, 8 connections", "p50, us", "p99, us", "PSS, MB", "agent's throughput, times", "agent's memory"]
    return (
        "`digits@2`, one JSON request with one image, sent by wrk over HTTP; latencies over one connection. One process, one "
        "inference thread of ONNX Runtime in the peers, tract in the agent; medians of rounds in which each server runs alone. "
        "The agent's part that serves is measured here, without its connection to a fleet.\n\n" + table(head, rows)
    )


def footprint(found):
    agent, starts = found["agent_pss"], found["agent_start_to_first_inference_ms"]
    rows = [
        ["agent, program", mb(found["agent_bytes"])],
        ["agent, PSS: connected over mTLS, digits loaded, 1,000 inferences done", mb(agent["pss_bytes"])],
        ["of it anonymous and of files", f"{mb(agent['anonymous_bytes'])}, {mb(agent['file_bytes'])}"],
        ["agent, start to first inference", f"{starts['median']:.0f} ms, median of {len(starts['all'])}"],
        ["controller, PSS idle", mb(found["controller_pss_idle"]["pss_bytes"])],
    ]
    return table(["", ""], rows)


def connections(found):
    rows = [
        ["controller, PSS for 1,000 devices more", mb(found["controller_pss_bytes_per_1000_devices"])],
        ["enrolments per second", f"{found['enrolments_per_second']:.0f}"],
        ["connects per second, mTLS", f"{found['connects_per_second']:.0f}"],
    ]
    return f"{found['devices']} light devices.\n\n" + table(["", ""], rows)


def soak(found):
    rows = [
        [f"{row['answered']:,}", mb(row["pss_bytes"]), mb(row["anonymous_bytes"])] for row in found["memory"]
    ]
    return (
        f"{found['requests']:,} requests over eight kept connections, {found['swaps']} switches of the bundle under them, every "
        f"answer held against what the bundle it names must answer: {found['failed']} failed, "
        f"{found['requests_per_second']:.0f} a second. Each answer is remembered for labels that come later, in a ring of "
        "16 MiB; from the middle to the end memory changed by "
        f"{found['growth_over_the_second_half'] * 100:+.1f} %.\n\n"
        + table(["answered", "PSS", "anonymous"], rows)
    )


def ingest(found):
    rows = [
        [
            row["what"], f"{row['windows']:,}", f"{row['windows_per_second']:,.0f}", f"{row['cpu_us_per_window']:.0f}",
            ", ".join(f"{each / 1e6:.0f}" for each in row["pss_bytes"]),
        ]
        for row in found["rows"]
    ]
    head = ["", "windows", "windows/s", "processor time a window, us", "PSS at start, middle, end, MB"]
    return (
        f"{found['devices']} simulated devices, {found['hours']} hours of each on {found['cores']} cores, with a profile of 32 "
        "channels and labels every hour; a window is 300 requests. Stored in sled, each transaction flushed to disk, then "
        "acknowledged. In the last row the devices share the cores with the controller, each with a session of its own and "
        f"one message on its way; broker and TLS take {found['broker_share_of_cpu'] * 100:.0f} % of its processor time.\n\n"
        + table(head, rows)
    )


def profile(found):
    rows = [
        [row["case"], str(row["channels"]), f"{row['off_us']:.2f}", f"{row['on_us']:.2f}", f"{row['on_us'] / 10:.2f} %"]
        for row in found["request"]
    ]
    days = [
        [f"{day['rows']:,}", str(day["windows_a_message"]), str(day["messages"]), f"{day['bytes'] / 1e3:.1f}"]
        + [f"{part['bytes'] / 1e3:.1f}" for part in day["parts"]]
        for day in found["day"]
    ]
    names = [part["part"] for part in found["day"][0]["parts"]]
    return (
        "Time that profiles add to a request: reading its inputs and answer and counting them. With and without take turns in "
        "blocks of one run; medians.\n\n"
        + table(["input", "channels", "without, us", "with, us", "of a model that takes 1 ms"], rows)
        + f"\n\nA device's day on the wire: one model with {found['day'][0]['channels']} channels, windows of five minutes, "
        "profiles of an hour, compressed messages as they are sent, in kB. The parts are what the day is smaller by without "
        "them.\n\n"
        + table(["rows a day", "windows a message", "messages", "kB"] + names, days)
    )


PARTS = [
    ("Engines", "engine.json", engines),
    ("Serving, beside its peers", "peers.json", peers),
    ("Memory and start", "footprint.json", footprint),
    ("Connections", "connections.json", connections),
    ("Millions of requests", "soak.json", soak),
    ("Telemetry out", "profile.json", profile),
    ("Telemetry in", "ingest.json", ingest),
]


def cpu():
    with open("/proc/cpuinfo") as info:
        return next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")


def main():
    folder, page = sys.argv[1:]
    parts = [
        "# What it costs, measured\n",
        f"Put together by `tests/python/performance.py`, which `make bench` ends with, on {cpu()}, {os.cpu_count()} cores. Every "
        "table is one run; compare ratios between machines, not times.\n",
    ]
    missing = []
    for title, name, write in PARTS:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            missing.append(f"`{name}`")
            continue
        with open(path) as file:
            parts.append(f"## {title}\n\n{write(json.load(file))}\n")
    serving = os.path.join(folder, "serving.txt")
    if os.path.exists(serving):
        with open(serving) as file:
            parts.append(f"## What each way to the model adds\n\n```text\n{file.read().strip()}\n```\n")
    if missing:
        parts.append(f"Not measured this time: {', '.join(missing)}.\n")
    with open(page, "w") as out:
        out.write("\n".join(parts))


if __name__ == "__main__":
    main()

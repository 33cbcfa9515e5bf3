#!/usr/bin/env python3
"""What other programs make of what the controller gives out.

`parquet ONE ALL`: DuckDB and pandas read exported folders without an option; ONE has the telemetry table only.
`s3 ENDPOINT BUCKET PREFIX FOLDER`: objects of a bucket are the files of the folder, and pyarrow reads them from there.
`otlp FILE`: the body of an OTLP/HTTP request is one for the protocol's own protobuf definition.
`webhook CASE`: the function in docs/alerts.md accepts a signed request and refuses forged and old ones.

Prints one JSON line on stdout: {"ok", "checks": [{"name", "ok", "detail"}]}. Exit code 0 if every check held, 1 if
one failed, 2 for wrong usage.
"""

import json
import re
import sys

CHECKS = []


def check(name, found, expected):
    CHECKS.append({"name": name, "ok": found == expected, "detail": f"found {found!r}, expected {expected!r}"})


def parquet(one, everything):
    import duckdb
    import pandas as pd

    db = duckdb.connect()
    ask = lambda sql: db.execute(sql).fetchall()
    lake = f"'{one}/**/*.parquet'"
    check("duckdb counts", ask(f"SELECT count(*), sum(requests) FROM {lake}"), [(2304, 21_504)])
    check(
        "duckdb sees the folders as columns",
        ask(f'SELECT "table", model, date::VARCHAR, count(*) FROM {lake} GROUP BY ALL ORDER BY ALL'),
        [
            ("telemetry", "digits", "2026-11-21", 864),
            ("telemetry", "digits", "2026-11-23", 864),
            ("telemetry", "vibration", "2026-11-21", 288),
            ("telemetry", "vibration", "2026-11-23", 288),
        ],
    )
    types = dict(ask(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {lake})"))
    wanted = {
        "bucket_start": "TIMESTAMP WITH TIME ZONE", "requests": "BIGINT", "total_p95_ms": "DOUBLE",
        "bundle": "VARCHAR", "date": "DATE", "model": "VARCHAR", "version": "BIGINT",
    }
    check("duckdb types", {name: types.get(name) for name in wanted}, wanted)
    check("duckdb times", ask(f"SELECT min(epoch_ms(bucket_start)), max(epoch_ms(bucket_start)) FROM {lake}"),
          [(1_795_219_200_000, 1_795_478_100_000)])
    check("duckdb missing values", ask(f"SELECT count(*) FROM {lake} WHERE total_p95_ms IS NULL AND requests > 0"), [(0,)])
    check("duckdb missing values of quiet buckets",
          ask(f"SELECT count(*) = count(*) FILTER (total_p95_ms IS NULL) FROM {lake} WHERE requests = 0"), [(True,)])
    classes = f"'{everything}/table=classes/**/*.parquet'"
    check("duckdb texts", ask(f"SELECT DISTINCT class FROM {classes} ORDER BY 1"), [('größe "x"',), ("seven",)])
    channels = f"'{everything}/table=channels/**/*.parquet'"
    check("duckdb channels", ask(f"SELECT DISTINCT cohort, channel, n, mean, sd, min, bins FROM {channels}"),
          [("site=a", "luma", 7, 0.5, None, None, "[3,4]")])

    frame = pd.read_parquet(one)
    check("pandas rows", (len(frame), int(frame["requests"].sum())), (2304, 21_504))
    check("pandas partitions", sorted(frame["model"].astype(str).unique()), ["digits", "vibration"])
    check("pandas times", str(frame["bucket_start"].dt.tz), "UTC")
    check("pandas first", frame["bucket_start"].min().isoformat(), "2026-11-21T00:00:00+00:00")
    labels = pd.read_parquet(f"{everything}/table=labels")
    check("pandas labels", (len(labels), int(labels["correct"].sum()), set(labels["source"])), (80, 720, {"controller"}))
    newest = frame[(frame["bundle"] == "digits@10") & (frame["role"] == "primary")].sort_values("bucket_start")
    last = newest.iloc[-1]
    check("pandas one row", (int(last["requests"]), int(last["errors"]), int(last["bucket_secs"])), (7, 0, 300))


def s3(endpoint, bucket, prefix, folder):
    import pathlib

    import boto3
    import pyarrow.dataset
    import pyarrow.fs

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key",
                          aws_secret_access_key="secret")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    names = sorted(one["Key"] for page in pages for one in page.get("Contents", []))
    root = pathlib.Path(folder)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.parquet"))
    check("the same names", names, [f"{prefix}/{name}" for name in files])
    body = lambda name: client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
    check("the same bytes", [name for name in files if body(name) != (root / name).read_bytes()], [])
    scheme, address = endpoint.split("://")
    place = pyarrow.fs.S3FileSystem(endpoint_override=address, scheme=scheme, region="us-east-1", access_key="key",
                                    secret_key="secret")
    lake = pyarrow.dataset.dataset(f"{bucket}/{prefix}/table=telemetry", filesystem=place, partitioning="hive")
    table = lake.to_table(columns=["model", "requests"])
    check("pyarrow rows", (table.num_rows, sum(table["requests"].to_pylist())), (2304, 21_504))
    check("pyarrow folders", sorted(set(table["model"].to_pylist())), ["digits", "vibration"])


def otlp(path):
    from google.protobuf import json_format
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    with open(path, encoding="utf-8") as file:
        request = json_format.Parse(file.read(), ExportMetricsServiceRequest(), ignore_unknown_fields=False)
    (resource,) = request.resource_metrics
    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
    check("service", (attributes["service.name"], attributes["service.instance.id"]), ("edgefleet", "fleet-1"))
    metrics = {one.name: one for one in resource.scope_metrics[0].metrics}
    counter = metrics["edgefleet_http_requests_total"]
    check("counter", (counter.WhichOneof("data"), counter.sum.is_monotonic, counter.sum.aggregation_temporality),
          ("sum", True, 2))
    check("counter points", sorted(point.as_int for point in counter.sum.data_points), [1, 1])
    (point,) = metrics["edgefleet_http_request_seconds"].histogram.data_points
    check("histogram", (point.count, list(point.bucket_counts), list(point.explicit_bounds)[:2]),
          (2, [0, 1, 0, 0, 0, 0, 0, 0, 0, 1], [0.001, 0.005]))
    check("whole gauge", metrics["edgefleet_alerts_pending"].gauge.data_points[0].as_int, 3)
    check("gauge", metrics["edgefleet_bundle_accuracy_ratio"].gauge.data_points[0].as_double, 0.9)
    check("times", 0 < point.start_time_unix_nano <= point.time_unix_nano, True)


def webhook(path):
    with open("docs/alerts.md", encoding="utf-8") as file:
        (code,) = re.findall(r"```python\n(.*?)```", file.read(), re.S)
    names = {}
    exec(code, names)
    verify = names["verify"]
    with open(path, encoding="utf-8") as file:
        case = json.load(file)
    secret, headers, body = case["secret"].encode(), case["headers"], case["body"].encode()
    stamp = int(headers["Edgefleet-Timestamp"])
    check("accepted", verify(secret, headers, body, now=stamp + 10), True)
    check("too old", verify(secret, headers, body, now=stamp + 301), False)
    check("too new", verify(secret, headers, body, now=stamp - 301), False)
    check("changed body", verify(secret, headers, body + b" ", now=stamp), False)
    check("other secret", verify(b"x" * 20, headers, body, now=stamp), False)
    fresher = {**headers, "Edgefleet-Timestamp": str(stamp + 1)}
    check("changed time", verify(secret, fresher, body, now=stamp), False)


def main():
    stories = {"parquet": (parquet, 2), "s3": (s3, 4), "otlp": (otlp, 1), "webhook": (webhook, 1)}
    story, args = stories.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0)), sys.argv[2:]
    if story[0] is None or len(args) != story[1]:
        print(__doc__, file=sys.stderr)
        return 2
    story[0](*args)
    ok = all(one["ok"] for one in CHECKS)
    print(json.dumps({"ok": ok, "checks": CHECKS}, ensure_ascii=False))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The stock PyPI `tritonclient` against a running agent, call by call, on real images.

Prints one JSON line on stdout: {"ok", "accuracy", "images", "checks": [{"name", "ok", "detail"}]}; progress goes to
stderr. Exit code 0 if every check held, 1 if one failed, 2 for wrong usage. Nothing is retried: the agent must be
ready. `--expect-accuracy` makes the accuracy over the holdout a check too.
"""

import argparse
import asyncio
import json
import sys
import urllib.request

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

PROBABILITIES, LABEL = "probabilities", "label"
INPUTS = [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]
OUTPUTS = [
    {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, 10]},
    {"name": LABEL, "datatype": "INT64", "shape": [-1]},
]


class Story:
    """What every check needs, and what came of each."""

    def __init__(self, arguments):
        self.url, self.model = arguments.url, arguments.model
        self.bundle = arguments.expect_bundle
        self.version = arguments.expect_bundle.rpartition("@")[2]
        holdout = json.loads(open(arguments.holdout, encoding="utf-8").read())
        self.images = np.array(holdout["images"], np.float32)[: arguments.limit]
        self.labels = np.array(holdout["labels"], np.int64)[: arguments.limit]
        self.client = triton.InferenceServerClient(url=self.url)
        self.checks, self.accuracy = [], None
        self.expected_accuracy = arguments.expect_accuracy

    def check(self, check):
        """Runs one check; whatever it raises is its failure, and the story goes on."""
        try:
            detail, ok = check(self) or "", True
        except Exception as error:
            detail, ok = f"{type(error).__name__}: {error}", False
        self.checks.append({"name": check.__name__, "ok": ok, "detail": detail})
        print(f"{'ok  ' if ok else 'FAIL'} {check.__name__}: {detail}", file=sys.stderr)

    def summary(self):
        return {
            "ok": all(check["ok"] for check in self.checks),
            "bundle": self.bundle,
            "accuracy": self.accuracy,
            "images": len(self.images),
            "checks": self.checks,
        }

    def infer(self, images, binary_in=True, outputs=None, **more):
        return self.client.infer(self.model, [image_input(images, binary_in)], outputs=outputs, **more)


def image_input(images, binary=True):
    tensor = triton.InferInput("image", list(images.shape), "FP32")
    return tensor.set_data_from_numpy(images, binary_data=binary)


def asked(binary, names=(PROBABILITIES, LABEL)):
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def both(result):
    return result.as_numpy(PROBABILITIES), result.as_numpy(LABEL)


def expect(condition, otherwise):
    if not condition:
        raise AssertionError(otherwise)


def expect_same(found, wanted, what):
    for name, one, other in zip((PROBABILITIES, LABEL), both(found), both(wanted)):
        expect(one is not None and other is not None, f"{what}: output `{name}` is missing")
        expect(one.dtype == other.dtype and one.shape == other.shape, f"{what}: `{name}` is {one.dtype} {one.shape}")
        expect(np.array_equal(one, other), f"{what}: `{name}` is {one.tolist()}, not {other.tolist()}")


def expect_answer(story, result, rows):
    """Shapes, types, and which bundle says it has answered."""
    probabilities, label = both(result)
    expect(probabilities.dtype == np.float32 and probabilities.shape == (rows, 10), f"{probabilities.shape}")
    expect(label.dtype == np.int64 and label.shape == (rows,), f"label has shape {label.shape}")
    expect(np.allclose(probabilities.sum(axis=1), 1, atol=1e-4), "probabilities do not add up to 1")
    expect(np.array_equal(probabilities.argmax(axis=1), label), "label is not the most probable class")
    said = result.get_response()
    expect(said["model_name"] == story.model, f"model_name is {said['model_name']!r}")
    expect(said.get("model_version") == story.version, f"model_version is {said.get('model_version')!r}")


def expect_refusal(call, statuses, *words):
    """`call` must raise what the server said, with one of `statuses` and one of `words` in it; returns the message."""
    try:
        call()
    except InferenceServerException as error:
        message = error.message()
        expect(error.status() in statuses, f"status {error.status()}, not one of {statuses}: {message}")
        expect("exception occurred in the client" not in message, f"no readable error body: {message}")
        expect("empty response" not in message, f"status {error.status()} without an error body")
        expect(any(word in message for word in words), f"none of {words} is named: {message}")
        return f"[{error.status()}] {message}"
    raise AssertionError("the request was accepted")


# --- health and descriptions ---------------------------------------------------------------------------------------


def live_and_ready(story):
    expect(story.client.is_server_live(), "not live")
    expect(story.client.is_server_ready(), "not ready")


def model_ready(story):
    expect(story.client.is_model_ready(story.model), "not ready")
    expect(story.client.is_model_ready(story.model, story.version), f"version {story.version} is not ready")
    expect(not story.client.is_model_ready(story.model, "999999"), "version 999999 is ready")
    expect(not story.client.is_model_ready("no-such-model"), "a model that does not exist is ready")


def server_metadata(story):
    said = story.client.get_server_metadata()
    expect(said["name"] and said["version"], f"name or version is empty: {said}")
    expect("binary_tensor_data" in said["extensions"], f"extensions are {said['extensions']}")
    return f"{said['name']} {said['version']}"


def model_metadata(story):
    said = story.client.get_model_metadata(story.model)
    expect(said == story.client.get_model_metadata(story.model, story.version), "differs when asked by version")
    expect(said["name"] == story.model and story.version in said["versions"], f"{said}")
    expect(said["platform"], "platform is empty")
    for key, wanted in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        found = [{name: tensor[name] for name in ("name", "datatype", "shape")} for tensor in said[key]]
        expect(found == wanted, f"{key} are {found}")


def model_config(story):
    said = story.client.get_model_config(story.model)
    expect(said["name"] == story.model, f"name is {said['name']!r}")
    expect(said.get("platform") or said.get("backend"), "neither platform nor backend")
    batched = said["max_batch_size"] > 0
    for key, wanted in (("input", INPUTS), ("output", OUTPUTS)):
        expect([tensor["name"] for tensor in said[key]] == [tensor["name"] for tensor in wanted], f"{said[key]}")
        for tensor, tells in zip(said[key], wanted):
            expect(tensor["data_type"] == f"TYPE_{tells['datatype']}", f"data_type is {tensor['data_type']}")
            dims = tells["shape"][1:] if batched else tells["shape"]
            # Triton writes a scalar per row as dims [1] with a reshape, and so may the agent.
            expect(list(map(int, tensor["dims"])) in (dims, dims or [1]), f"dims of {tells['name']}: {tensor['dims']}")
    return f"max_batch_size {said['max_batch_size']}"


def repository_index(story):
    said = story.client.get_model_repository_index()
    mine = [entry for entry in said if entry["name"] == story.model and entry.get("version") == story.version]
    expect(len(mine) == 1 and mine[0]["state"] == "READY", f"{said}")


def statistics_count(story):
    def read():
        said = story.client.get_inference_statistics(story.model, story.version)["model_stats"]
        expect(len(said) == 1 and said[0]["name"] == story.model, f"{said}")
        return said[0]["inference_stats"]["success"]["count"], said[0]["inference_count"]

    before = read()
    story.infer(story.images[:1])
    story.infer(story.images[:3])
    after = read()
    expect(after[0] >= before[0] + 2, f"success.count went from {before[0]} to {after[0]} after 2 requests")
    expect(after[1] >= before[1] + 4, f"inference_count went from {before[1]} to {after[1]} after 4 rows")
    everything = story.client.get_inference_statistics()["model_stats"]
    expect(story.model in [entry["name"] for entry in everything], "v2/models/stats does not list the model")


# --- inference -------------------------------------------------------------------------------------------------------


def infer_binary_by_default(story):
    result = story.infer(story.images[:1])
    expect_answer(story, result, 1)
    sizes = [output["parameters"]["binary_data_size"] for output in result.get_response()["outputs"]]
    expect(sizes == [40, 8], f"binary sizes are {sizes}")


def infer_names_its_bundle(story):
    parameters = story.infer(story.images[:1]).get_response().get("parameters", {})
    bundle = parameters.get("bundle", "")
    expect(bundle == story.bundle or bundle.startswith("sha256:"), f"parameters are {parameters}")
    expect(parameters.get("prediction_id"), f"no prediction_id in {parameters}")
    return bundle


def json_equals_binary(story):
    """All four ways of sending and asking give the same bits."""
    wanted = story.infer(story.images[:2])
    for binary_in in (True, False):
        for binary_out in (True, False):
            found = story.infer(story.images[:2], binary_in, asked(binary_out))
            expect_answer(story, found, 2)
            expect_same(found, wanted, f"binary in {binary_in}, binary out {binary_out}")
            for output in found.get_response()["outputs"]:
                expect(("data" in output) != binary_out, f"`{output['name']}` came the other way than asked")


def outputs_as_asked(story):
    """One output alone, and JSON beside binary in one answer."""
    alone = story.infer(story.images[:1], outputs=asked(True, [LABEL]))
    names = [output["name"] for output in alone.get_response()["outputs"]]
    expect(names == [LABEL] and alone.as_numpy(PROBABILITIES) is None, f"outputs are {names}")
    mixed = story.infer(story.images[:1], outputs=asked(False, [PROBABILITIES]) + asked(True, [LABEL]))
    expect_same(mixed, story.infer(story.images[:1]), "mixed")


def batch_of_eight(story):
    whole = story.infer(story.images[:8])
    expect_answer(story, whole, 8)
    for at in range(8):
        one = story.infer(story.images[at : at + 1])
        expect(np.allclose(both(one)[0][0], both(whole)[0][at], rtol=1e-4, atol=1e-6), f"row {at} differs")
        expect(both(one)[1][0] == both(whole)[1][at], f"row {at} has another label")


def by_version(story):
    expect_answer(story, story.infer(story.images[:1], model_version=story.version), 1)
    return expect_refusal(
        lambda: story.infer(story.images[:1], model_version="999999"), ("400", "404"), "999999", story.model
    )


def request_id_echo(story):
    for name in ("story-1", "ümlaut ✓"):
        said = story.infer(story.images[:1], request_id=name).get_response()
        expect(said.get("id") == name, f"id {name!r} came back as {said.get('id')!r}")
    said = story.infer(story.images[:1]).get_response()
    expect(not said.get("id"), f"a request without id got {said.get('id')!r}")


def async_infer(story):
    pending = [story.client.async_infer(story.model, [image_input(story.images[at : at + 1])]) for at in range(4)]
    for at, handle in enumerate(pending):
        expect_same(handle.get_result(), story.infer(story.images[at : at + 1]), f"request {at}")


def compression(story):
    wanted = story.infer(story.images[:8])
    for way in ("gzip", "deflate"):
        for binary in (True, False):
            found = story.infer(
                story.images[:8],
                binary,
                asked(binary),
                request_compression_algorithm=way,
                response_compression_algorithm=way,
            )
            expect_same(found, wanted, f"{way}, {'binary' if binary else 'JSON'}")


def compressed_answers(story):
    """The client hides whether the answer was compressed, so this one request is sent without it."""
    body, _ = triton.InferenceServerClient.generate_request_body(
        [image_input(story.images[:8], False)], outputs=asked(False)
    )
    for way in ("gzip", "deflate", None):
        headers = {"Content-Type": "application/json"} | ({"Accept-Encoding": way} if way else {})
        url = f"http://{story.url}/v2/models/{story.model}/infer"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            encoding, raw = answer.headers["Content-Encoding"], answer.read()
        expect(encoding in (None, way), f"asked for {way}, got {encoding}")
        found = triton.InferenceServerClient.parse_response_body(raw, content_encoding=encoding)
        expect_same(found, story.infer(story.images[:8]), f"{way}")
        expect(way is None or encoding == way, f"asked for {way}, the answer was not compressed")


def asyncio_client(story):
    """aiohttp always offers gzip, deflate and more, and this client unpacks only answers of infer."""

    async def tell():
        async with triton_aio.InferenceServerClient(story.url) as client:
            expect(await client.is_server_live() and await client.is_model_ready(story.model), "not ready")
            expect((await client.get_model_metadata(story.model))["name"] == story.model, "metadata")
            expect(await client.get_model_repository_index(), "empty index")
            inputs = [image_input(story.images[:2])]
            results = [await client.infer(story.model, inputs, request_id="aio")]
            for way in ("gzip", "deflate"):
                results.append(
                    await client.infer(
                        story.model,
                        inputs,
                        request_compression_algorithm=way,
                        response_compression_algorithm=way,
                    )
                )
            try:
                await client.infer("no-such-model", inputs)
            except InferenceServerException as error:
                expect("no-such-model" in error.message(), f"unreadable refusal: {error}")
            else:
                raise AssertionError("a model that does not exist answered")
            return results

    results = asyncio.run(tell())
    expect(results[0].get_response().get("id") == "aio", "the id was not echoed")
    for result in results:
        expect_same(result, story.infer(story.images[:2]), "http.aio")


# --- refusals --------------------------------------------------------------------------------------------------------


def refusals_are_readable(story):
    """Each must be an error of the client's own kind that names the thing, in binary and in JSON."""

    def send(name, shape, datatype, dtype, binary, outputs=None):
        tensor = triton.InferInput(name, shape, datatype)
        tensor.set_data_from_numpy(np.zeros(shape, dtype), binary_data=binary)
        return lambda: story.client.infer(story.model, [tensor], outputs=outputs)

    messages = []
    for binary in (True, False):
        messages += [
            expect_refusal(send("picture", [1, 64], "FP32", np.float32, binary), ("400",), "picture", "image"),
            expect_refusal(send("image", [1, 63], "FP32", np.float32, binary), ("400",), "63"),
            expect_refusal(send("image", [64], "FP32", np.float32, binary), ("400",), "image", "[64]", "rank"),
            expect_refusal(send("image", [1, 64], "FP64", np.float64, binary), ("400",), "FP64", "FP32"),
        ]
    good = image_input(story.images[:1])
    client, missing = story.client, "no-such-model"
    messages += [
        expect_refusal(lambda: client.infer(story.model, [good, good]), ("400",), "image"),
        expect_refusal(lambda: client.infer(story.model, [good], outputs=asked(True, ["mood"])), ("400",), "mood"),
        expect_refusal(lambda: client.infer(missing, [good]), ("400", "404"), missing),
        expect_refusal(lambda: client.get_model_metadata(missing), ("400", "404"), missing),
    ]
    expect_answer(story, story.infer(story.images[:1]), 1)  # and the connection is still good
    return " | ".join(dict.fromkeys(messages))


def accuracy_over_the_holdout(story):
    """One request per image on one connection, as a device's own program would ask."""
    answers = np.array([story.infer(story.images[at : at + 1]).as_numpy(LABEL)[0] for at in range(len(story.images))])
    story.accuracy = round(float((answers == story.labels).mean()), 6)
    wanted = story.expected_accuracy
    expect(wanted is None or abs(story.accuracy - wanted) < 1e-6, f"accuracy is {story.accuracy}, not {wanted}")
    return f"{int((answers == story.labels).sum())} of {len(answers)}"


CHECKS = (
    live_and_ready,
    model_ready,
    server_metadata,
    model_metadata,
    model_config,
    repository_index,
    statistics_count,
    infer_binary_by_default,
    infer_names_its_bundle,
    json_equals_binary,
    outputs_as_asked,
    batch_of_eight,
    by_version,
    request_id_echo,
    async_infer,
    compression,
    compressed_answers,
    asyncio_client,
    refusals_are_readable,
    accuracy_over_the_holdout,
)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url", required=True, help="host:port of the agent's HTTP endpoint, without scheme")
    arguments.add_argument("--model", default="digits")
    arguments.add_argument("--holdout", required=True, help="path of holdout.json")
    arguments.add_argument("--expect-bundle", required=True, help="what must answer, as digits@2")
    arguments.add_argument("--expect-accuracy", type=float, help="exact accuracy over the images replayed")
    arguments.add_argument("--limit", type=int, help="replay only the first so many images (at least 8)")
    chosen = arguments.parse_args()
    if not chosen.expect_bundle.rpartition("@")[2].isdigit():
        arguments.error("--expect-bundle must look like digits@2")
    if chosen.limit is not None and chosen.limit < 8:
        arguments.error("--limit must be at least 8")
    story = Story(chosen)
    for check in CHECKS:
        story.check(check)
    story.client.close()
    summary = story.summary()
    print(json.dumps(summary, ensure_ascii=False))
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())

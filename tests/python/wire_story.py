#!/usr/bin/env python3
"""Every stock PyPI `tritonclient` (http, http.aio, grpc, grpc.aio, and grpc over a socket file) against a server.

`echo`: against models `echo-DATATYPE` that return input `x`, [-1, 2], as `y`, and `echo-large`, [-1, 1048576] FP32.
`digits`: against a whole agent that serves the digits model.

Prints one JSON line on stdout: {"ok", "checks": [{"name", "ok", "detail"}]}; progress goes to stderr. Exit code 0 if
every check held, 1 if one failed, 2 for wrong usage. Nothing is retried.
"""

import argparse
import asyncio
import json
import os
import queue
import sys

import grpc
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
import tritonclient.utils.shared_memory as shared_memory
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

VALUES = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[1, 65535]], np.uint16),
    "UINT32": np.array([[1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[1.5, -65504]], np.float16),
    "BF16": np.array([[1.5, -3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[1.5, -3.4e38]], np.float32),
    "FP64": np.array([[1.5, -1e308]], np.float64),
    "BYTES": np.array([[b"", "ümlaut".encode()]], np.object_),
}


class Http:
    """What a check does with one of the clients; the asynchronous ones are waited for."""

    module, is_grpc, is_async = triton_http, False, False

    def __init__(self, name, url):
        self.name, self.url = name, url
        self.client = None if self.is_async else self.module.InferenceServerClient(url=url)

    def ask(self, method, *args, **kwargs):
        if not self.is_async:
            return getattr(self.client, method)(*args, **kwargs)

        async def tell():
            async with self.module.InferenceServerClient(url=self.url) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(tell())

    def input(self, name, values, binary=True):
        tensor = self.module.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        return tensor.set_data_from_numpy(values) if self.is_grpc else tensor.set_data_from_numpy(values, binary)

    def infer(self, model, values, name="x", binary=True, outputs=None, **more):
        return self.ask("infer", model, [self.input(name, values, binary)], outputs=outputs, **more)

    def refused(self, *words, call):
        """The message of the refusal, which has one of `words`."""
        try:
            call()
        except InferenceServerException as error:
            expect(any(word in error.message() for word in words), f"{self.name}: none of {words} in {error}")
            return str(error.status())
        raise AssertionError(f"{self.name}: the request was accepted")


class HttpAio(Http):
    module, is_async = triton_http_aio, True


class Grpc(Http):
    module, is_grpc = triton_grpc, True


class GrpcAio(Grpc):
    module, is_async = triton_grpc_aio, True


class Story:
    def __init__(self, arguments):
        self.arguments = arguments
        self.model = "digits"
        self.checks = []
        self.http, self.grpc = Http("http", arguments.http), Grpc("grpc", arguments.grpc)
        self.all = [self.http, HttpAio("http.aio", arguments.http), self.grpc, GrpcAio("grpc.aio", arguments.grpc)]
        # One socket file speaks both; of the stock clients only those of gRPC can be told to use it.
        self.all.append(Grpc("grpc, socket file", f"unix:{arguments.socket}"))
        self.all.append(GrpcAio("grpc.aio, socket file", f"unix:{arguments.socket}"))
        # Every port speaks both too.
        self.all.append(Grpc("grpc on the port of http", arguments.http))

    def check(self, check):
        try:
            detail, ok = check(self) or "", True
        except Exception as error:
            detail, ok = f"{type(error).__name__}: {error}", False
        self.checks.append({"name": check.__name__, "ok": ok, "detail": detail})
        print(f"{'ok  ' if ok else 'FAIL'} {check.__name__}: {detail}", file=sys.stderr)


def expect(condition, otherwise):
    if not condition:
        raise AssertionError(otherwise)


def expect_same(found, wanted, what):
    expect(found is not None, f"{what}: no output")
    expect(found.shape == wanted.shape, f"{what}: shape {found.shape}, not {wanted.shape}")
    if wanted.dtype == np.object_:
        expect(found.tolist() == wanted.tolist(), f"{what}: {found}, not {wanted}")
    else:
        # The clients give BF16 back as FP32.
        found = found.astype(wanted.dtype)
        expect(found.tobytes() == wanted.tobytes(), f"{what}: {found}, not {wanted}")


# --- echo ------------------------------------------------------------------------------------------------------------


def every_datatype_with_every_client(story):
    for datatype, values in VALUES.items():
        for way in story.all:
            found = way.infer(f"echo-{datatype.lower()}", values).as_numpy("y")
            expect_same(found, values, f"{datatype} over {way.name}")
    return f"{len(VALUES)} datatypes, {len(story.all)} clients"


def json_both_ways(story):
    for datatype, values in VALUES.items():
        if datatype in ("FP16", "BF16"):
            continue  # the protocol has no JSON for them
        for way in story.all[:2]:
            for binary_in, binary_out in ((False, False), (False, True), (True, False)):
                outputs = [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
                model = f"echo-{datatype.lower()}"
                found = way.infer(model, values, binary=binary_in, outputs=outputs).as_numpy("y")
                if datatype == "BYTES" and not binary_out:
                    # Without binary data the client gives texts, not bytes.
                    found = np.array([[text.encode() if isinstance(text, str) else text for text in found[0]]], object)
                expect_same(found, values, f"{datatype}, {way.name}, in {binary_in}, out {binary_out}")


def no_rows_at_all(story):
    for way in story.all:
        found = way.infer("echo-fp32", np.zeros((0, 2), np.float32)).as_numpy("y")
        expect(found is not None and found.size == 0, f"{way.name}: {found}")


def beyond_four_megabytes(story):
    values = np.arange(2 << 20, dtype=np.float32).reshape(2, 1 << 20)
    for way in story.all:
        expect_same(way.infer("echo-large", values).as_numpy("y"), values, way.name)


def compression(story):
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    for way in story.all:
        for coding in ("gzip", "deflate"):
            if way.is_grpc:
                found = way.infer("echo-fp32", values, compression_algorithm=coding)
            else:
                found = way.infer(
                    "echo-fp32",
                    values,
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
            expect_same(found.as_numpy("y"), values, f"{coding}, {way.name}")


def not_a_number(story):
    values = np.array([[np.nan, np.inf]], np.float32)
    for way in story.all:
        expect_same(way.infer("echo-fp32", values).as_numpy("y"), values, way.name)
    told = story.http.refused("NaN", call=lambda: story.http.infer("echo-fp32", values, binary=False))
    return f"in JSON: {told}"


def refusals(story):
    codes = []
    two = np.zeros((1, 2), np.float32)
    for way in story.all:
        bad, missing = (
            ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND") if way.is_grpc else ("400", "404")
        )
        for wanted, words, call in (
            (missing, ("no-such",), lambda: way.infer("no-such", two)),
            (missing, ("99",), lambda: way.infer("echo-fp32", two, model_version="99")),
            (bad, ("no input `z`",), lambda: way.infer("echo-fp32", two, name="z")),
            (bad, ("has shape [1, 3]",), lambda: way.infer("echo-fp32", np.zeros((1, 3), np.float32))),
            (bad, ("FP64",), lambda: way.infer("echo-fp32", np.zeros((1, 2)))),
            (bad, ("at most 8",), lambda: way.infer("echo-fp32", np.zeros((9, 2), np.float32))),
            (
                bad,
                ("no output `z`",),
                lambda: way.infer("echo-fp32", two, outputs=[way.module.InferRequestedOutput("z")]),
            ),
            (missing, ("no-such",), lambda: way.ask("get_model_metadata", "no-such")),
        ):
            found = way.refused(*words, call=call)
            expect(found == wanted, f"{way.name}: {words} came with {found}, not {wanted}")
            codes.append(found)
        unsupported = way.refused(
            "sequence_id", call=lambda: way.infer("echo-fp32", two, sequence_id=7, sequence_start=True)
        )
        expect(unsupported in ("501", "StatusCode.UNIMPLEMENTED"), f"{way.name}: sequence {unsupported}")
        expect_same(way.infer("echo-fp32", two).as_numpy("y"), two, f"{way.name} afterwards")
    return f"{len(codes)} refusals"


def time_that_is_up(story):
    """A microsecond is over before another thread has answered; now and then it may be quick enough."""
    two = np.zeros((1, 2), np.float32)
    for way in story.all:
        found = set()
        for _ in range(20):
            try:
                way.infer("echo-large", np.zeros((1, 1 << 20), np.float32), timeout=1)
            except InferenceServerException as error:
                expect("timeout of 1 us" in error.message(), f"{way.name}: {error}")
                found.add(error.status())
                break
        expect(found in ({"504"}, {"StatusCode.DEADLINE_EXCEEDED"}), f"{way.name}: {found}")
        expect_same(way.infer("echo-fp32", two, timeout=60_000_000).as_numpy("y"), two, f"{way.name} in time")


def typed_contents(story):
    """What other clients of gRPC send; the stock one always sends raw contents."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(story.arguments.grpc))
    fields = {
        "BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64", "UINT8": "uint",
        "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes",
    }  # fmt: skip
    for datatype, field in fields.items():
        values = VALUES[datatype]
        request = service_pb2.ModelInferRequest(model_name=f"echo-{datatype.lower()}")
        tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
        getattr(tensor.contents, f"{field}_contents").extend(values[0].tolist())
        raw = stub.ModelInfer(request).raw_output_contents[0]
        wanted = serialize_byte_tensor(values).item() if datatype == "BYTES" else values.tobytes()
        expect(raw == wanted, f"{datatype}: {raw}, not {wanted}")
        request.raw_input_contents.append(raw)
        try:
            stub.ModelInfer(request)
        except grpc.RpcError as error:
            expect(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"a mix: {error}")
        else:
            raise AssertionError(f"{datatype}: typed and raw contents were taken together")


def shared_memory_in_and_out(story):
    names = {way.name: f"edgefleet-story-{os.getpid()}-{number}" for number, way in enumerate(story.all)}
    for way in story.all:
        key = names[way.name]
        handle = shared_memory.create_shared_memory_region("tensors", key, 4096)
        try:
            way.ask("register_system_shared_memory", "tensors", f"/{key}", 4096)
            way.refused(
                "registered already", call=lambda: way.ask("register_system_shared_memory", "tensors", key, 4096)
            )
            for datatype in ("FP32", "BF16", "BYTES"):
                values = VALUES[datatype]
                raw = values if datatype != "BYTES" else serialize_byte_tensor(values)
                size = len(raw.item()) if datatype == "BYTES" else raw.nbytes
                shared_memory.set_shared_memory_region(handle, [raw], 64)
                tensor = way.module.InferInput("x", [1, 2], datatype)
                tensor.set_shared_memory("tensors", size, 64)
                output = way.module.InferRequestedOutput("y")
                output.set_shared_memory("tensors", 1024, 2048)
                answer = way.ask("infer", f"echo-{datatype.lower()}", [tensor], outputs=[output])
                said = answer.get_output("y")
                region = (said.parameters if way.is_grpc else said["parameters"])["shared_memory_region"]
                expect((region.string_param if way.is_grpc else region) == "tensors", f"{said}")
                found = bytes(handle._mpsm_handle.buf[2048 : 2048 + size])
                wanted = raw.item() if datatype == "BYTES" else raw.tobytes()
                expect(found == wanted, f"{way.name}, {datatype}: {found}, not {wanted}")
            told = way.ask("get_system_shared_memory_status", "tensors")
            entry = told.regions["tensors"] if way.is_grpc else told[0]
            found = (entry.key, entry.byte_size) if way.is_grpc else (entry["key"], entry["byte_size"])
            expect(found == (f"/{key}", 4096), f"{way.name}: {told}")
            tensor = way.module.InferInput("x", [1, 2], "FP32")
            tensor.set_shared_memory("tensors", 8, 4092)
            way.refused("hold no 8 bytes", call=lambda: way.ask("infer", "echo-fp32", [tensor]))
            small = way.module.InferRequestedOutput("y")
            small.set_shared_memory("tensors", 7)
            two = way.input("x", np.zeros((1, 2), np.float32))
            way.refused(
                "has 8 bytes, its place", call=lambda: way.ask("infer", "echo-fp32", [two], outputs=[small])
            )
            way.ask("unregister_system_shared_memory", "tensors")
            way.refused("not registered", call=lambda: way.ask("infer", "echo-fp32", [tensor]))
        finally:
            shared_memory.destroy_shared_memory_region(handle)
        for bad in ("../etc/passwd", "/a/b", "..", "no-such-key"):
            way.refused(
                "no plain name", "cannot be opened",
                call=lambda: way.ask("register_system_shared_memory", "evil", bad, 8),
            )  # fmt: skip
        found = way.refused(
            "CUDA", call=lambda: way.ask("register_cuda_shared_memory", "gpu", b"aGFuZGxl", 0, 8)
        )
        expect(found in ("501", "StatusCode.UNIMPLEMENTED"), f"{way.name}: {found}")


def a_stream_in_order(story):
    for way in (story.grpc, story.all[4]):
        with triton_grpc.InferenceServerClient(way.url) as client:
            answers = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            for n in range(200):
                name = "z" if n == 50 else "x"
                values = np.array([[n, 0]], np.float32)
                client.async_stream_infer("echo-fp32", [way.input(name, values)], request_id=str(n))
            for n in range(200):
                result, error = answers.get(timeout=60)
                if n == 50:
                    expect(error is not None and "no input `z`" in error.message(), f"{n}: {error}")
                    continue
                expect(error is None, f"{n}: {error}")
                expect(result.get_response().id == str(n), f"{result.get_response().id} came as {n}")
                expect_same(result.as_numpy("y"), np.array([[n, 0]], np.float32), f"{n}")
            client.stop_stream()


def a_stream_with_asyncio(story):
    async def tell():
        async with triton_grpc_aio.InferenceServerClient(story.arguments.grpc) as client:

            async def requests():
                for n in range(100):
                    values = np.array([[n, 0]], np.float32)
                    yield {"model_name": "echo-fp32", "inputs": [story.grpc.input("x", values)], "request_id": str(n)}

            found = []
            async for result, error in client.stream_infer(requests()):
                expect(error is None, f"{error}")
                found.append(result.get_response().id)
            return found

    expect(asyncio.run(tell()) == [str(n) for n in range(100)], "not in order")


def many_at_once(story):
    """64 at a time on one connection, each with its own answer."""

    async def tell(way):
        async with way.module.InferenceServerClient(url=way.url) as client:

            async def one(n):
                values = np.array([[n, -n]], np.float32)
                for _ in range(5):
                    answer = await client.infer("echo-fp32", [way.input("x", values)], request_id=str(n))
                    expect_same(answer.as_numpy("y"), values, f"{way.name}, {n}")

            await asyncio.gather(*(one(n) for n in range(64)))

    for way in (story.all[1], story.all[3]):
        asyncio.run(tell(way))


# --- digits ----------------------------------------------------------------------------------------------------------


def digits(story, way, rows, outputs=None, **more):
    return way.infer("digits", story.images[:rows], name="image", outputs=outputs, **more)


def health_and_descriptions(story):
    version = story.arguments.bundle.rpartition("@")[2]
    for way in story.all:
        expect(way.ask("is_server_live") and way.ask("is_server_ready"), f"{way.name}: not ready")
        expect(way.ask("is_model_ready", "digits") and way.ask("is_model_ready", "digits", version), way.name)
        expect(not way.ask("is_model_ready", "digits", "999999"), f"{way.name}: version 999999 is ready")
        expect(not way.ask("is_model_ready", "no-such"), f"{way.name}: a model that is not there is ready")
    server, model = story.http.ask("get_server_metadata"), story.http.ask("get_model_metadata", "digits")
    over = story.grpc.ask("get_server_metadata", as_json=True)
    expect({key: over[key] for key in ("name", "version", "extensions")} == server, f"{over} and {server}")
    expect("system_shared_memory" in server["extensions"], f"{server}")
    over = story.grpc.ask("get_model_metadata", "digits", as_json=True)
    shown = {key: model[key] for key in ("name", "versions", "platform")}
    expect({key: over[key] for key in shown} == shown, f"{over} and {model}")
    for side in ("inputs", "outputs"):
        tensors = [tensor | {"shape": [str(dim) for dim in tensor["shape"]]} for tensor in model[side]]
        expect(over[side] == tensors, f"{over[side]} and {tensors}")


def configuration(story):
    told = story.http.ask("get_model_config", "digits")
    config = story.grpc.ask("get_model_config", "digits").config
    for key in ("name", "platform", "backend", "max_batch_size"):
        expect(getattr(config, key) == told[key], f"{key}: {getattr(config, key)} and {told[key]}")
    expect(list(config.version_policy.specific.versions) == told["version_policy"]["specific"]["versions"], f"{config}")
    for found, wanted in ((config.input, told["input"]), (config.output, told["output"])):
        for tensor, tells in zip(found, wanted, strict=True):
            kind = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
            expect((tensor.name, kind, list(tensor.dims)) == (tells["name"], tells["data_type"], tells["dims"]), tells)
            expect(tensor.HasField("reshape") == ("reshape" in tells), f"{tensor}")
    expect(config.parameters["bundle"].string_value == story.arguments.bundle, f"{config.parameters}")


def answers_are_those_of_http(story):
    wanted = digits(story, story.http, 8)
    for way in story.all:
        found = digits(story, way, 8, request_id="ümlaut ✓")
        for name in ("probabilities", "label"):
            expect_same(found.as_numpy(name), wanted.as_numpy(name), f"{name} over {way.name}")
        said = found.get_response(as_json=True) if way.is_grpc else found.get_response()
        expect(said["id"] == "ümlaut ✓", f"{way.name}: the id came back as {said.get('id')!r}")
        parameters = said["parameters"]
        bundle = parameters["bundle"]["string_param"] if way.is_grpc else parameters["bundle"]
        expect(bundle == story.arguments.bundle, f"{way.name}: {parameters}")
        expect(parameters["prediction_id"], f"{way.name}: {parameters}")


def outputs_as_asked(story):
    for way in story.all:
        alone = digits(story, way, 2, outputs=[way.module.InferRequestedOutput("label")])
        expect(alone.as_numpy("probabilities") is None, f"{way.name}: an output nobody asked for")
        turned = [way.module.InferRequestedOutput(name) for name in ("label", "probabilities")]
        found, wanted = digits(story, way, 2, outputs=turned), digits(story, way, 2)
        for name in ("probabilities", "label"):
            expect_same(found.as_numpy(name), wanted.as_numpy(name), f"{name} over {way.name}")


def classification(story):
    wanted = digits(story, story.http, 3).as_numpy("probabilities")
    for way in story.all:
        best = way.module.InferRequestedOutput("probabilities", class_count=2)
        found = digits(story, way, 3, outputs=[best]).as_numpy("probabilities")
        expect(found.shape == (3, 2), f"{way.name}: {found}")
        for row, texts in zip(wanted, found):
            value, index, label = texts[0].decode().split(":")
            expect(int(index) == row.argmax() and label == index, f"{way.name}: {texts}")
            expect(abs(float(value) - row.max()) < 1e-5, f"{way.name}: {texts}")


def statistics(story):
    before = story.http.ask("get_inference_statistics", "digits")["model_stats"][0]
    for way in story.all:
        digits(story, way, 3)
    after = story.grpc.ask("get_inference_statistics", "digits").model_stats[0]
    count = len(story.all)
    expect(after.inference_count - before["inference_count"] == 3 * count, f"{after}")
    expect(after.execution_count - before["execution_count"] == count, f"{after}")
    for field in after.inference_stats.DESCRIPTOR.fields:
        expect(after.inference_stats.HasField(field.name), f"{field.name} is missing")
    grown = after.inference_stats.success.count - before["inference_stats"]["success"]["count"]
    expect(grown == count and after.inference_stats.compute_infer.ns > 0, f"{after}")
    expect(any(batch.batch_size == 3 for batch in after.batch_stats), f"{after.batch_stats}")
    everything = story.grpc.ask("get_inference_statistics").model_stats
    expect([model.name for model in everything] == ["digits"], f"{everything}")


def settings(story):
    for way in story.all:
        logs, trace = way.ask("get_log_settings"), way.ask("get_trace_settings", "digits")
        if way.is_grpc:
            expect(logs.settings["log_info"].bool_param is True, f"{logs}")
            expect(list(trace.settings["trace_level"].value) == ["OFF"], f"{trace}")
        else:
            expect(logs["log_info"] is True and trace["trace_level"] == ["OFF"], f"{logs} {trace}")
        way.ask("update_log_settings", {"log_info": True})
        way.ask("update_trace_settings", settings={"trace_level": ["OFF"]})
        way.refused("log_verbose_level", call=lambda: way.ask("update_log_settings", {"log_verbose_level": 1}))
        way.refused(
            "trace_level", call=lambda: way.ask("update_trace_settings", settings={"trace_level": ["TIMESTAMPS"]})
        )


def repository(story):
    wanted = [{"name": "digits", "version": story.arguments.bundle.rpartition("@")[2], "state": "READY"}]
    headers = {"authorization": f"Bearer {story.arguments.token}"}
    for way in story.all:
        told = way.ask("get_model_repository_index", **({"as_json": True} if way.is_grpc else {}))
        told = told["models"] if way.is_grpc else [{k: v for k, v in model.items() if v} for model in told]
        expect(told == wanted, f"{way.name}: {told}")
        way.refused("token", call=lambda: way.ask("unload_model", "digits"))
        way.refused("token", call=lambda: way.ask("unload_model", "digits", headers={"authorization": "Bearer x"}))
        way.ask("unload_model", "digits", headers=headers)
        expect(not way.ask("is_model_ready", "digits"), f"{way.name}: still ready")
        found = way.refused("unloaded by hand", call=lambda: digits(story, way, 1))
        expect(found in ("503", "StatusCode.UNAVAILABLE"), f"{way.name}: {found}")
        way.ask("load_model", "digits", headers=headers)
        expect(way.ask("is_model_ready", "digits"), f"{way.name}: not ready again")
        way.refused(
            "config", call=lambda: way.ask("load_model", "digits", headers=headers, config="{}")
        )


def accuracy_over_grpc(story):
    """One request per image on one connection."""
    answers = [
        story.grpc.infer("digits", story.images[at : at + 1], name="image").as_numpy("label")[0]
        for at in range(len(story.images))
    ]
    right = int((np.array(answers) == story.labels).sum())
    expect(right > 0.9 * len(answers), f"{right} of {len(answers)}")
    return f"{right} of {len(answers)}"


CHECKS = {
    "echo": (
        every_datatype_with_every_client,
        json_both_ways,
        no_rows_at_all,
        beyond_four_megabytes,
        compression,
        not_a_number,
        refusals,
        time_that_is_up,
        typed_contents,
        shared_memory_in_and_out,
        a_stream_in_order,
        a_stream_with_asyncio,
        many_at_once,
    ),
    "digits": (
        health_and_descriptions,
        configuration,
        answers_are_those_of_http,
        outputs_as_asked,
        classification,
        statistics,
        settings,
        repository,
        accuracy_over_grpc,
    ),
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=CHECKS)
    arguments.add_argument("--http", required=True, help="host:port of HTTP")
    arguments.add_argument("--grpc", required=True, help="host:port of gRPC")
    arguments.add_argument("--socket", required=True, help="path of the socket file")
    arguments.add_argument("--holdout", help="path of holdout.json, for digits")
    arguments.add_argument("--bundle", help="what must answer, as digits@2")
    arguments.add_argument("--token", help="the agent's local token")
    chosen = arguments.parse_args()
    if chosen.what == "digits" and not (chosen.holdout and chosen.bundle and chosen.token):
        arguments.error("digits needs --holdout, --bundle and --token")
    story = Story(chosen)
    if chosen.holdout:
        with open(chosen.holdout, encoding="utf-8") as file:
            holdout = json.load(file)
        story.images = np.array(holdout["images"], np.float32)
        story.labels = np.array(holdout["labels"], np.int64)
    for check in CHECKS[chosen.what]:
        story.check(check)
    ok = all(check["ok"] for check in story.checks)
    print(json.dumps({"ok": ok, "checks": story.checks}, ensure_ascii=False))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

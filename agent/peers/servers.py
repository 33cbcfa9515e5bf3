"""The peers, each as its own documentation starts it, with ONNX Runtime behind it.

`python servers.py NAME MODEL PORT` serves until it is killed. One process, one inference thread, no batching:
what the agent has too. Answers hold every output of the model.
"""

import os
import sys

import numpy
import onnxruntime


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def mlserver(model, port):
    import asyncio

    from mlserver import MLServer, ModelSettings, Settings

    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2, parallel_workers=0, debug=False
    )
    model = ModelSettings(name="digits", implementation="servers.ForMlserver")
    asyncio.run(MLServer(settings).start([model]))


def kserve(model, port):
    import kserve

    class Onnx(kserve.Model):
        def load(self):
            self.session = session(model)
            self.names = [output.name for output in self.session.get_outputs()]
            self.ready = True
            return True

        def predict(self, payload, headers=None, response_headers=None):
            found = self.session.run(None, {each.name: each.as_numpy() for each in payload.inputs})
            outputs = []
            for name, array in zip(self.names, found):
                kind = {"float32": "FP32", "int64": "INT64"}[str(array.dtype)]
                output = kserve.InferOutput(name=name, shape=list(array.shape), datatype=kind)
                output.set_data_from_numpy(array, binary_data=False)
                outputs.append(output)
            return kserve.InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=outputs)

    served = Onnx("digits")
    served.load()
    kserve.ModelServer(http_port=port, grpc_port=port + 1, workers=1, enable_latency_logging=False).start([served])


def litserve(model, port):
    import litserve

    litserve.LitServer(ForLitserve(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="error"
    )


# MLServer, BentoML and LitServe's workers import this module and take what they serve from here.
try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceResponse

    class ForMlserver(MLModel):
        async def load(self):
            self.session = session(os.environ["PEER_MODEL"])
            self.outputs_of = [output.name for output in self.session.get_outputs()]
            return True

        async def predict(self, payload):
            inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
            found = self.session.run(None, inputs)
            outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(self.outputs_of, found)]
            return InferenceResponse(model_name=self.name, outputs=outputs)
except ImportError:
    pass

try:
    import bentoml

    @bentoml.service(workers=1)
    class Bento:
        def __init__(self):
            self.session = session(os.environ["PEER_MODEL"])
            self.input = self.session.get_inputs()[0].name
            self.names = [output.name for output in self.session.get_outputs()]

        @bentoml.api
        def predict(self, data: list) -> dict:
            found = self.session.run(None, {self.input: numpy.asarray(data, dtype="float32")})
            return {name: array.tolist() for name, array in zip(self.names, found)}
except ImportError:
    pass

try:
    import litserve as lit

    class ForLitserve(lit.LitAPI):
        def setup(self, device):
            self.session = session(os.environ["PEER_MODEL"])
            self.input = self.session.get_inputs()[0].name
            self.names = [output.name for output in self.session.get_outputs()]

        def decode_request(self, request):
            return numpy.asarray(request["data"], dtype="float32")

        def predict(self, batch):
            return self.session.run(None, {self.input: batch})

        def encode_response(self, found):
            return {name: array.tolist() for name, array in zip(self.names, found)}
except ImportError:
    pass


if __name__ == "__main__":
    {"mlserver": mlserver, "kserve": kserve, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))

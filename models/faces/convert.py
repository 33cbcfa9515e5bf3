"""The published weights of face-api's tiny face detector as an ONNX graph.

The network is in its sources (`tinyYolov2/TinyYolov2Base.ts`, `runMobilenet`; MIT): separable convolutions with leaky
ReLUs, and one last convolution that gives five anchors of five numbers in each of 10 x 10 cells. What `extractBoxes`
does with them is part of the graph here, so its output is the one of YOLOv5: centre, size, objectness, class.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, STEP = 320, 32
CELLS = SIDE // STEP
# Width and height in cells (`tinyFaceDetector/const.ts`).
ANCHORS = ((1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061), (4.266906, 5.178857), (9.041765, 10.66308))
OPSET, IR_VERSION = 17, 8


def weights(manifest, data):
    """{name: array} of a tfjs weights file: 8 bits a number, each tensor with its scale and minimum."""
    found, at = {}, 0
    for entry in json.loads(manifest)[0]["weights"]:
        count, how = int(np.prod(entry["shape"])), entry["quantization"]
        assert how["dtype"] == "uint8"
        raw = np.frombuffer(data, np.uint8, count, at)
        found[entry["name"]] = (raw * how["scale"] + how["min"]).astype(np.float32).reshape(entry["shape"])
        at += count
    assert at == len(data)
    return found


class Graph:
    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, values, kind=np.float32):
        self.constants.append(numpy_helper.from_array(np.array(values, kind, order="C"), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def convolution(self, value, name, filters, bias=None, pad=0, group=1):
        inputs = [value, self.constant(f"{name}.w", filters)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.b", bias))
        kernel = list(filters.shape[2:])
        return self.node("Conv", inputs, name, kernel_shape=kernel, pads=[pad] * 4, group=group)


def to_onnx(w):
    """`image` FP32 [batch, 3, 320, 320], RGB less its mean, / 255, to `boxes` FP32 [batch, 500, 6]."""
    g, size = Graph(), SIDE - 2
    value = g.convolution("image", "conv0", w["conv0/filters"].transpose(3, 2, 0, 1), w["conv0/bias"])
    value, size = pooled(g, value, 0, size, 2)
    for at in range(1, 6):
        deep, wide = w[f"conv{at}/depthwise_filter"], w[f"conv{at}/pointwise_filter"]
        value = g.convolution(value, f"deep{at}", deep.transpose(2, 3, 0, 1), pad=1, group=deep.shape[2])
        value = g.convolution(value, f"wide{at}", wide.transpose(3, 2, 0, 1), w[f"conv{at}/bias"])
        value, size = pooled(g, value, at, size, 1 if at == 5 else 2)
    assert size == CELLS
    value = g.convolution(value, "conv8", w["conv8/filters"].transpose(3, 2, 0, 1), w["conv8/bias"])

    count = len(ANCHORS)
    value = g.node("Reshape", [value, g.constant("grid", [0, count, 5, CELLS, CELLS], np.int64)], "anchors")
    value = g.node("Transpose", [value], "cells", perm=[0, 3, 4, 1, 2])
    value = g.node("Reshape", [value, g.constant("rows", [0, CELLS * CELLS * count, 5], np.int64)], "raw")
    y, x, anchor = np.meshgrid(np.arange(CELLS), np.arange(CELLS), np.arange(count), indexing="ij")
    corner = np.stack([x, y], axis=-1).reshape(1, -1, 2)
    sizes = np.array(ANCHORS)[anchor].reshape(1, -1, 2)
    axis = g.constant("axis", [2], np.int64)
    for name, first, last in (("xy", 0, 2), ("wh", 2, 4), ("face", 4, 5)):
        bounds = [g.constant(f"{name}.from", [first], np.int64), g.constant(f"{name}.to", [last], np.int64)]
        g.node("Slice", [value, *bounds, axis], f"{name}.raw")
    step = g.constant("step", STEP)
    g.node("Sigmoid", ["xy.raw"], "xy.cell")
    g.node("Add", ["xy.cell", g.constant("corner", corner)], "xy.cells")
    g.node("Mul", ["xy.cells", step], "xy")
    g.node("Exp", ["wh.raw"], "wh.anchors")
    g.node("Mul", ["wh.anchors", g.constant("sizes", sizes * STEP)], "wh")
    g.node("Sigmoid", ["face.raw"], "face")
    # One class, which is certain: face-api's score is the objectness alone.
    g.node("Pad", ["face", g.constant("right", [0, 0, 0, 0, 0, 1], np.int64), g.constant("one", 1.0)], "scores")
    g.node("Concat", ["xy", "wh", "scores"], "boxes", axis=2)

    rows = CELLS * CELLS * count
    graph = helper.make_graph(
        g.nodes, "tiny_face_detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", rows, 6])],
        g.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "edgefleet models/faces"
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def pooled(g, value, at, size, stride):
    """Largest of 2 x 2, then the leaky ReLU, which never falls: after the pool it gives the same from a quarter of the
    numbers. TensorFlow's `same`: what is missing is added at the right and the bottom."""
    new = -(-size // stride)
    pad = (new - 1) * stride + 2 - size
    strides, pads = [stride] * 2, [0, 0, pad, pad]
    value = g.node("MaxPool", [value], f"pool{at}", kernel_shape=[2, 2], strides=strides, pads=pads)
    return g.node("LeakyRelu", [value], f"leaky{at}", alpha=0.1), new

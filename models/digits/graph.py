"""Fitted weights to ONNX, written by hand.

The converters for scikit-learn emit `ai.onnx.ml` operators (Scaler, ZipMap) that small engines lack. A linear model or
an MLP needs only Gemm, Relu, Softmax and ArgMax, so we write those (and a few plain ones for `smoothed`): opset 17, IR 8. The division of pixels by 16 is
folded into the first weights; the models take pixels as they come, 0 to 16.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from data import CLASSES, MAX_PIXEL, PIXELS

OPSET = 17
IR_VERSION = 8
# `smoothed`: noisy copies per image and their noise, in pixel values. 2048 copies make a request of the demo several
# times slower, where most of the time of v2 is not inference at all.
GROUPS, COPIES, NOISE = 16, 128, 0.02


def classifier(layers, description):
    """ONNX bytes of an MLP: `layers` is [(weights [in, out], bias [out]), ...] fitted on pixels 0.0 to 1.0.

    Input `image` FP32 [batch, 64], 0 to 16. Outputs `probabilities` FP32 [batch, 10] and `label` INT64 [batch].
    """
    nodes, weights, value = [], [], "image"
    for at, (matrix, bias) in enumerate(layers):
        first, last = at == 0, at == len(layers) - 1
        matrix = matrix / MAX_PIXEL if first else matrix
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{at}"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{at}"))
        out = "logits" if last else f"sum{at}"
        nodes.append(helper.make_node("Gemm", [value, f"w{at}", f"b{at}"], [out], name=f"dense{at}"))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"hidden{at}"], name=f"relu{at}"))
            value = f"hidden{at}"
    return finish(nodes, weights, description)


def smoothed(layers, description):
    """ONNX bytes of the MLP of `classifier`, its hidden layer averaged over GROUPS x COPIES noisy copies of the image.

    Interface and file size stay near those of `classifier`, the work is GROUPS x COPIES times that of its first layer.
    No engine can save it: each copy goes through a Relu of its own (ink is never negative) before the weights, and
    through a second one after them. COPIES rows at a time keep the memory of a batch of 32 at a few MiB.
    """
    (first, hidden_bias), (last, bias) = layers
    random = np.random.Generator(np.random.PCG64(6))
    noise = NOISE * random.standard_normal((1, COPIES, PIXELS))
    shifts = NOISE * random.standard_normal((GROUPS, 1, PIXELS))
    weights = [
        _floats("w0", first / MAX_PIXEL),
        _floats("b0", hidden_bias),
        _floats("w1", last),
        _floats("b1", bias),
        _floats("noise", noise),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    nodes = [helper.make_node("Unsqueeze", ["image", "axis"], ["row"], name="unsqueeze")]
    for at in range(GROUPS):
        weights.append(_floats(f"shift{at}", shifts[at : at + 1]))
        nodes += [
            helper.make_node("Add", ["row", f"shift{at}"], [f"shifted{at}"]),
            helper.make_node("Add", [f"shifted{at}", "noise"], [f"noisy{at}"]),
            helper.make_node("Relu", [f"noisy{at}"], [f"copies{at}"]),
            helper.make_node("MatMul", [f"copies{at}", "w0"], [f"product{at}"]),
            helper.make_node("Add", [f"product{at}", "b0"], [f"sum{at}"]),
            helper.make_node("Relu", [f"sum{at}"], [f"hidden{at}"]),
            helper.make_node("ReduceMean", [f"hidden{at}"], [f"mean{at}"], axes=[1], keepdims=0),
        ]
    nodes.append(helper.make_node("Mean", [f"mean{at}" for at in range(GROUPS)], ["hidden"], name="mean"))
    nodes.append(helper.make_node("Gemm", ["hidden", "w1", "b1"], ["logits"], name="dense1"))
    return finish(nodes, weights, description)


def _floats(name, values):
    return numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)


def finish(nodes, weights, description):
    """ONNX bytes: `nodes`, which read `image` and write `logits`, with the interface of `digits` around them."""
    nodes = [
        *nodes,
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=-1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], name="argmax", axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", PIXELS])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        weights,
    )
    model = helper.make_model(
        graph,
        producer_name="edgefleet-digits-recipe",
        producer_version="1",
        doc_string=description,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def layers_of(estimator):
    """(weights, bias) of each layer of a fitted LogisticRegression or MLPClassifier."""
    if hasattr(estimator, "coefs_"):
        return list(zip(estimator.coefs_, estimator.intercepts_))
    return [(estimator.coef_.T, estimator.intercept_)]


def run(model, images):
    """(probabilities [n, 10] float32, label [n] int64) by ONNX Runtime, no graph optimisation, one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "label"], {"image": images})

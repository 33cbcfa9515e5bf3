"""Fitted weights to ONNX, written by hand.

The converters for scikit-learn emit `ai.onnx.ml` operators (Scaler, ZipMap) that small engines lack. A linear model or
an MLP needs only Gemm, Relu, Softmax and ArgMax, so we write those: opset 17, IR 8. The division of pixels by 16 is
folded into the first weights; the models take pixels as they come, 0 to 16.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from data import CLASSES, MAX_PIXEL, PIXELS

OPSET = 17
IR_VERSION = 8


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
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=-1))
    nodes.append(helper.make_node("ArgMax", ["probabilities"], ["label"], name="argmax", axis=1, keepdims=0))
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

"""A small convolutional network over time, its training in NumPy, and its ONNX graph.

Three strided convolutions, the mean over time, one linear layer. Small enough that the backward pass fits on a page and
no framework is needed to make the weights again; seeds fixed, one thread, so a second run writes the same bytes.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# (input channels, output channels, kernel, stride)
LAYERS = ((6, 32, 7, 2), (32, 64, 5, 2), (64, 64, 5, 2))
CLASSES = 7
SAMPLES = 192
OPSET, IR_VERSION = 17, 8


def initial(seed):
    random = np.random.Generator(np.random.PCG64(seed))
    weights = []
    for inputs, outputs, kernel, _ in LAYERS:
        scale = np.sqrt(2 / (inputs * kernel))
        weights += [scale * random.standard_normal((outputs, inputs, kernel)), np.zeros(outputs)]
    last = LAYERS[-1][1]
    weights += [np.sqrt(1 / last) * random.standard_normal((last, CLASSES)), np.zeros(CLASSES)]
    return [w.astype(np.float32) for w in weights]


def _columns(x, kernel, stride):
    """[n, channels, time] to [n, steps, channels * kernel]; half a kernel of zeros on both sides."""
    x = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel // 2)))
    views = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=2)[:, :, ::stride]
    return np.ascontiguousarray(views.transpose(0, 2, 1, 3)).reshape(len(x), views.shape[2], -1)


def forward(weights, x, keep=None):
    """Logits of `x` [n, channels, time]; with a list `keep`, what `backward` needs is put there."""
    for at, (_, outputs, kernel, stride) in enumerate(LAYERS):
        columns = _columns(x, kernel, stride)
        y = np.maximum(columns @ weights[2 * at].reshape(outputs, -1).T + weights[2 * at + 1], 0)
        if keep is not None:
            keep.append((x.shape, columns, y))
        x = y.transpose(0, 2, 1)
    mean = x.mean(axis=2)
    return mean, mean @ weights[-2] + weights[-1]


def gradient(weights, x, target, drop):
    """Cross-entropy's mean gradient; `drop` is a mask over the mean features, scaled."""
    keep = []
    mean, _ = forward(weights, x, keep)
    logits = (mean * drop) @ weights[-2] + weights[-1]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    d = odds / odds.sum(axis=1, keepdims=True)
    d[np.arange(len(x)), target] -= 1
    d /= len(x)
    gradients = [None] * len(weights)
    gradients[-2], gradients[-1] = (mean * drop).T @ d, d.sum(axis=0)
    back = (d @ weights[-2].T) * drop
    steps = keep[-1][2].shape[1]
    dy = np.repeat(back[:, None, :] / steps, steps, axis=1)
    for at in reversed(range(len(LAYERS))):
        inputs, outputs, kernel, stride = LAYERS[at]
        shape, columns, y = keep[at]
        dy = dy * (y > 0)
        flat = dy.reshape(-1, outputs)
        gradients[2 * at] = (flat.T @ columns.reshape(len(flat), -1)).reshape(outputs, inputs, kernel)
        gradients[2 * at + 1] = flat.sum(axis=0)
        if at:
            dc = (dy @ weights[2 * at].reshape(outputs, -1)).reshape(len(dy), -1, inputs, kernel)
            half, steps = kernel // 2, dc.shape[1]
            dx = np.zeros((shape[0], shape[1], shape[2] + 2 * half), np.float32)
            for offset in range(kernel):
                dx[:, :, offset : offset + steps * stride : stride] += dc[:, :, :, offset].transpose(0, 2, 1)
            dy = dx[:, :, half:-half].transpose(0, 2, 1)
    return gradients


def train(series, targets, mean, std, epochs, seed=1, rate=2e-3, batch=64, report=None):
    """Adam with a falling rate; each epoch takes windows at random places of each recording.

    `series` are [samples, 6] arrays. Augmented by what differs between wearers: strength and speed of the movement.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    weights = initial(seed)
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    step, per_series = 0, 24
    total = epochs * (len(series) * per_series // batch)
    for epoch in range(epochs):
        windows, labels = [], []
        for one, target in zip(series, targets):
            for _ in range(per_series):
                speed = random.uniform(0.8, 1.25)
                length = int(SAMPLES * speed) + 1
                start = random.integers(0, len(one) - length)
                at = start + np.arange(SAMPLES) * speed
                low = at.astype(int)
                part = (at - low)[:, None]
                window = one[low] * (1 - part) + one[np.minimum(low + 1, len(one) - 1)] * part
                window = window * random.uniform(0.9, 1.1, 6)
                windows.append((window - mean) / std)
                labels.append(target)
        windows = np.stack(windows).transpose(0, 2, 1).astype(np.float32)
        labels = np.array(labels)
        order = random.permutation(len(labels))
        for begin in range(0, len(order) - batch + 1, batch):
            chosen = order[begin : begin + batch]
            drop = (random.random((batch, LAYERS[-1][1])) < 0.7).astype(np.float32) / np.float32(0.7)
            gradients = gradient(weights, windows[chosen], labels[chosen], drop)
            step += 1
            now = rate * 0.5 * (1 + np.cos(np.pi * step / total))
            for i, g in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
                weights[i] -= (now * (m / (np.sqrt(v) + 1e-8) + 1e-3 * weights[i])).astype(np.float32)
        if report:
            report(epoch, weights)
    return weights


def to_onnx(weights):
    """`signal` FP32 [batch, 6, SAMPLES], standardised, to `logits` FP32 [batch, 7]."""
    nodes, constants, value = [], [], "signal"
    for at, (_, _, kernel, stride) in enumerate(LAYERS):
        constants += [numpy_helper.from_array(weights[2 * at], f"w{at}"), numpy_helper.from_array(weights[2 * at + 1], f"b{at}")]
        nodes.append(
            helper.make_node(
                "Conv", [value, f"w{at}", f"b{at}"], [f"sum{at}"], name=f"conv{at}",
                kernel_shape=[kernel], strides=[stride], pads=[kernel // 2, kernel // 2],
            )
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"sum{at}"], [f"hidden{at}"], name=f"relu{at}"))
        value = f"hidden{at}"
    constants += [numpy_helper.from_array(weights[-2], "w"), numpy_helper.from_array(weights[-1], "b")]
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "w", "b"], ["logits"], name="dense"),
    ]
    graph = helper.make_graph(
        nodes, "exercise",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["batch", 6, SAMPLES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "edgefleet models/exercise"
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()

"""Would folding outliers out of the inputs help 8-bit inputs with one scale (`activations: tensor`)?

    python3 smoothing.py FP32_FOLDER TENSORS.safetensors...

FP32_FOLDER is an exported folder in float32, TENSORS what `lfm2vl preprocess --tensors` writes for images.
For each linear layer of the vision encoder that follows a norm, into whose weights the factors could be
folded: the relative error of its outputs with inputs and weights rounded to 8 bits, as it is, and with
SmoothQuant's factors max|x|^a / max|w|^(1-a) for some a (Xiao et al., 2023). Needs numpy, onnx, onnxruntime
and safetensors.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import load_file

path = pathlib.Path(sys.argv[1]) / "onnx" / "vision_encoder.onnx"
model = onnx.load(path)
weights = {i.name: i for i in model.graph.initializer}
norms = {o for n in model.graph.node if "LayerNorm" in n.op_type for o in n.output}
layers = [n for n in model.graph.node if n.op_type == "Gemm" and n.input[0] in norms]
for name in {n.input[0] for n in layers}:
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
session = onnxruntime.InferenceSession(model.SerializeToString())

inputs = {name: [] for name in {n.input[0] for n in layers}}
for file in sys.argv[2:]:
    tensors = load_file(file)
    names = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    for name, value in zip(inputs, session.run(list(inputs), {n: tensors[n] for n in names})):
        inputs[name].append(value)


def rounded(x, scale):
    return np.clip(np.round(x / scale), -127, 127) * scale


def error(x, w, factors):
    y = x @ w.T
    x, w = x / factors, w * factors
    x = rounded(x, np.abs(x).max() / 127)
    w = rounded(w, np.abs(w).max(1, keepdims=True) / 127)
    return np.linalg.norm(x @ w.T - y) / np.linalg.norm(y)


alphas = [0.25, 0.5, 0.75]
table = []
for node in layers:
    x = np.concatenate(inputs[node.input[0]])
    w = numpy_helper.to_array(weights[node.input[1]])
    largest_x, largest_w = np.abs(x).max(0) + 1e-6, np.abs(w).max(0) + 1e-6
    factors = [np.ones_like(largest_x)] + [largest_x**a / largest_w ** (1 - a) for a in alphas]
    table.append([error(x, w, f) for f in factors])
for what, row in [("median", np.median(table, 0)), ("worst", np.max(table, 0))]:
    figures = "  ".join(f"a={a} {e:.4f}" for a, e in zip(alphas, row[1:]))
    print(f"{what} of {len(table)} layers: as it is {row[0]:.4f}  {figures}")

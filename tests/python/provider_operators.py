"""Compares single operators with and without the kernels of the package onnxruntime-ep-lfm2vl.

    python provider_operators.py

Runs MatMulNBits in all formats and MultiHeadAttention with plain ONNX Runtime and with the kernels.
Prints one line of JSON: the largest difference of each relative to the size of the result, whether rows
that are no numbers stay so, the memory that sessions leave behind, whether threads get the same results,
and which operators were taken that must not be.
"""

import concurrent.futures
import json
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxruntime_ep_lfm2vl as kernels

kernels.register(ort)
random = np.random.default_rng(0)


def model(node, inputs, output, constants):
    value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    graph = helper.make_graph(
        [node],
        "operator",
        [value(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [value("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def product(bits, block, zero_points, bias, outputs=72, inputs=336, **attributes):
    blocks = -(-inputs // block)
    constants = {
        "q": random.integers(0, 256, (outputs, blocks, block * bits // 8), dtype=np.uint8),
        "s": random.random((outputs, blocks), dtype=np.float32) * 0.02 + 0.001,
    }
    if zero_points:
        constants["z"] = random.integers(0, 256, (outputs, -(-blocks * bits // 8)), dtype=np.uint8)
    if bias:
        constants["b"] = random.standard_normal(outputs, dtype=np.float32)
    names = ["x", "q", "s", "z" if zero_points else "", "", "b" if bias else ""]
    while not names[-1]:
        names.pop()
    attributes = {"accuracy_level": 4, **attributes}
    node = helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits, block_size=block, **attributes
    )
    return model(node, {"x": (TensorProto.FLOAT, ["batch", "rows", inputs])}, ["batch", "rows", outputs], constants)


def attention(masked, scale=None):
    inputs = {name: (TensorProto.FLOAT, ["batch", "rows", 48]) for name in ("x", "k", "v")}
    names = ["x", "k", "v"]
    if masked:
        inputs["mask"] = (TensorProto.INT32, ["batch", "rows"])
        names += ["", "mask"]
    attributes = {"num_heads": 3, **({"scale": scale} if scale else {})}
    node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", **attributes)
    return model(node, inputs, ["batch", "rows", 48], {})


def session(bytes, ours):
    if not ours:
        return ort.InferenceSession(bytes, providers=["CPUExecutionProvider"])
    options = ort.SessionOptions()
    # Nothing else may run the node: what is not taken is an error.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(bytes, kernels.session_options(ort, options))


def difference(bytes, feed):
    plain, ours = (session(bytes, ours).run(None, feed)[0] for ours in (False, True))
    return float(np.linalg.norm(ours - plain) / np.linalg.norm(plain))


report = {"onnxruntime": ort.__version__, "products": {}, "attention": {}, "wrongly_taken": []}
for bits in (4, 8):
    for block in (16, 32, 64, 128, 256):
        for zero_points in (False, True):
            for rows in (1, 5, 40):
                bytes = product(bits, block, zero_points, bias=rows == 5)
                x = random.standard_normal((1, rows, 336), dtype=np.float32)
                name = f"{bits} bits, block {block}, {'zero points' if zero_points else 'symmetric'}"
                worst = report["products"].get(name, 0)
                report["products"][name] = max(worst, difference(bytes, {"x": x}))

bytes = product(4, 32, True, False)
x = random.standard_normal((1, 3, 336), dtype=np.float32)
x[0, 1, 7] = np.nan
report["not_a_number"] = np.isnan(session(bytes, True).run(None, {"x": x})[0]).all(-1)[0].tolist()

q, k, v = (random.standard_normal((2, 37, 48), dtype=np.float32) for _ in range(3))
feed = {"x": q, "k": k, "v": v}
mask = (random.random((2, 37)) < 0.7).astype(np.int32)
report["attention"]["all keys"] = difference(attention(False), feed)
report["attention"]["a scale"] = difference(attention(False, 0.3), feed)
report["attention"]["some keys"] = difference(attention(True), {**feed, "mask": mask})
report["attention"]["no keys"] = difference(attention(True), {**feed, "mask": (mask * [[0], [1]]).astype(np.int32)})

# Sessions give back what they took, and several work at a time.
large = product(4, 32, True, False, outputs=4096, inputs=4096)
x = random.standard_normal((1, 2, 4096), dtype=np.float32)
first = session(large, True).run(None, {"x": x})[0]
resident = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
before = None
for round in range(30):
    session(large, True).run(None, {"x": x})
    before = resident() if round == 9 else before
report["megabytes_kept_by_20_sessions"] = resident() - before


def repeat(shared):
    own = session(large, True)
    runs = [each.run(None, {"x": x})[0] for each in (shared, own) for _ in range(5)]
    return all((run == first).all() for run in runs)


shared = session(large, True)
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    report["same_in_threads"] = all(threads.map(repeat, [shared] * 8))

for name, bytes in {"level 0": product(4, 32, True, False, accuracy_level=0), "level 1": product(8, 32, False, False, accuracy_level=1), "a large block": product(4, 512, False, False)}.items():
    try:
        session(bytes, True)
        report["wrongly_taken"].append(name)
    except Exception:
        pass
print(json.dumps(report))

"""Compares groups of nodes, and norms, with and without the kernels of the package onnxruntime-ep-lfm2vl.

    python provider_groups.py

Runs the gate of a feed-forward layer, the gated short convolution with its state, and the norm of a sum,
with plain ONNX Runtime and with the kernels alone. Prints one line of JSON: the largest difference of
each relative to the size of the result, and which groups were taken that must not be.
"""

import json

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxruntime_ep_lfm2vl as kernels

kernels.register(ort)
random = np.random.default_rng(0)
END = np.iinfo(np.int64).max
normal = lambda *shape: random.standard_normal(shape, dtype=np.float32)
node = lambda kind, inputs, outputs, **attributes: helper.make_node(kind, inputs, outputs, **attributes)
microsoft = lambda *arguments, **attributes: node(*arguments, domain="com.microsoft", **attributes)


def model(nodes, inputs, outputs, constants):
    kind = lambda name: TensorProto.INT64 if name == "start" else TensorProto.FLOAT
    value = lambda name, shape: helper.make_tensor_value_info(name, kind(name), shape)
    graph = helper.make_graph(
        nodes,
        "group",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def gate(alpha=1.0, up=96, seen=False):
    constants = {}

    def product(name, outputs):
        constants[name + ".q"] = random.integers(0, 256, (outputs, 2, 16), dtype=np.uint8)
        constants[name + ".s"] = random.random((outputs, 2), dtype=np.float32) * 0.1
        sizes = dict(K=64, N=outputs, bits=4, block_size=32, accuracy_level=4)
        return microsoft("MatMulNBits", ["x", name + ".q", name + ".s"], [name], **sizes)

    nodes = [
        product("gate", 96),
        product("up", up),
        microsoft("QuickGelu", ["gate"], ["active"], alpha=alpha),
        node("Mul", ["up", "active"], ["y"]),
    ]
    outputs = {"y": ["batch", "rows", 96], **({"active": ["batch", "rows", 96]} if seen else {})}
    return model(nodes, {"x": ["batch", "rows", 64]}, outputs, constants)


def short_conv(order=(0, 1, 2), width=3, kept=None, other=None, seen=(), unread=(), bias=False, **attributes):
    """State from the last `kept` columns on, or from the input `start` on; of new ones the last `other`."""
    channels = 150
    start = "start" if kept == "start" else "kept"
    constants = {
        "w": normal(channels, 1, width),
        "one": np.array([1]),
        "end": np.array([END]),
        **({} if kept == "start" else {"kept": np.array([-(kept or width)])}),
        **({"other": np.array([-other])} if other else {}),
        **({"bias": normal(channels)} if bias else {}),
    }
    thirds = [["before", "after", "inner"][index] for index in order]
    inputs = ["x", "w", "bias" if bias else "", "state"]
    nodes = [
        node("Split", ["gates"], thirds, axis=2, num_outputs=3),
        node("Mul", ["before", "inner"], ["x"]),
        node("Transpose", ["past"], ["columns"], perm=[0, 2, 1]),
        node("Slice", ["columns", "one", "end", "one"], ["state"]),
        microsoft("CausalConvWithState", inputs, ["convolved", "unused"], channels_last=1, **attributes),
        node("Slice", ["x", "other" if other else start, "end", "one"], ["newest"]),
        node("Concat", ["columns", "newest"], ["joined"], axis=1),
        node("Slice", ["joined", start, "end", "one"], ["last"]),
        node("Transpose", ["last"], ["present"], perm=[0, 2, 1]),
        node("Mul", ["after", "convolved"], ["y"]),
    ]
    outputs = {"y": ["batch", "rows", channels], "present": ["batch", channels, "columns"]}
    outputs |= {name: None for name in seen}
    outputs = {name: shape for name, shape in outputs.items() if name not in unread}
    shapes = {"gates": ["batch", "rows", 3 * channels], "past": ["batch", channels, width]}
    shapes |= {"start": [1]} if kept == "start" else {}
    return model(nodes, shapes, outputs, constants)


def norm(skip, bias=False):
    constants = {"w": normal(80), **({"bias": normal(80)} if bias else {})}
    inputs = ["x", "skip", "w"] + (["bias"] if bias else [])
    nodes = [microsoft("SkipSimplifiedLayerNormalization", inputs, ["y", "", "", "sum"], epsilon=1e-5)]
    shape = ["batch", "rows", 80]
    return model(nodes, {"x": shape, "skip": skip}, {"y": shape, "sum": shape}, constants)


def session(bytes, ours):
    if not ours:
        return ort.InferenceSession(bytes, providers=["CPUExecutionProvider"])
    options = ort.SessionOptions()
    # Nothing else may run the nodes: what is not taken is an error.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return ort.InferenceSession(bytes, kernels.session_options(ort, options))


def difference(bytes, feed):
    pairs = zip(*(session(bytes, ours).run(None, feed) for ours in (False, True)))
    return max(float(np.linalg.norm(ours - plain) / np.linalg.norm(plain)) for plain, ours in pairs)


report = {"onnxruntime": ort.__version__, "differences": {}, "wrongly_taken": []}
differences = report["differences"]
for rows in (1, 7, 300):
    differences[f"gate of {rows}"] = difference(gate(), {"x": normal(2, rows, 64)})
    skips = {"sum": ["batch", "rows", 80], "repeated sum": [1, "rows", 80]}
    for name, shape in skips.items():
        feed = {"x": normal(2, rows, 80), "skip": normal(1 if shape[0] == 1 else 2, rows, 80)}
        differences[f"norm of {rows}, {name}"] = difference(norm(shape), feed)

wrong = {
    "another alpha": gate(alpha=1.702),
    "a gate that is read elsewhere": gate(seen=True),
    "a factor of another shape": gate(up=1),
    "a norm with a bias": norm(["batch", "rows", 80], bias=True),
}
if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32):
    # Older ones do not have the operator with channels last.
    for order in [(0, 1, 2), (1, 2, 0), (2, 0, 1)]:
        for rows in (1, 2, 3, 50):
            feed = {"gates": normal(2, rows, 450), "past": normal(2, 150, 3)}
            differences[f"convolution of {rows}, thirds {order}"] = difference(short_conv(order), feed)
    for start in (-1, -2, -3, -8, -9, -10, -30):
        feed = {"gates": normal(2, 7, 450), "past": normal(2, 150, 3), "start": np.array([start])}
        differences[f"convolution, state from {start} on"] = difference(short_conv(kept="start"), feed)
    feed = {"gates": normal(1, 9, 450), "past": normal(1, 150, 5)}
    differences["convolution of width 5"] = difference(short_conv(width=5), feed)
    wrong |= {
        "an activation": short_conv(activation="silu"),
        "a convolution with a bias": short_conv(bias=True),
        "a state of others": short_conv(other=2),
        "a state that nobody reads": short_conv(unread=["present"]),
        "an inner value that is read elsewhere": short_conv(seen=["x"]),
        "a third that is read elsewhere": short_conv(seen=["after"]),
        "a state that is read elsewhere": short_conv(seen=["unused"]),
    }

def choice():
    """A gate in each branch, whose values have the same names."""
    branches = []
    for name in ("then", "else"):
        graph = onnx.load_from_string(gate()).graph
        inner = helper.make_graph(graph.node, name, [], graph.output, graph.initializer)
        branches.append(inner)
    choose = node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", 64]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "rows", 96])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([choose], "choice", inputs, [output])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


# What is not computed as a group is right as well.
def fallback(bytes, feed, **entries):
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    ours = ort.InferenceSession(bytes, kernels.session_options(ort, options)).run(None, feed)
    plain = session(bytes, False).run(None, feed)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, plain))


x = normal(1, 3, 64)
for flag in (False, True):
    differences[f"a gate in a branch, {flag}"] = fallback(choice(), {"x": x, "flag": np.array(flag)})
for setting in ({"session__disable_model_compile": "1"}, {"ep__lfm2vlexecutionprovider__groups": "0"}):
    differences[f"a gate with {setting}"] = fallback(gate(), {"x": x}, **setting)

for name, bytes in wrong.items():
    session(bytes, False)
    try:
        session(bytes, True)
        report["wrongly_taken"].append(name)
    except Exception as error:
        assert "fallback to CPU EP has been explicitly disabled" in str(error), error
print(json.dumps(report))

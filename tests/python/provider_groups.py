"""Compares groups of nodes, and norms, with and without the kernels of the package onnxruntime-ep-lfm2vl.

    python provider_groups.py

Runs the gate of a feed-forward layer, the gated short convolution with its state, attention with its cache
(with norms and rotation as nodes of their own or not), and the norm of a sum, with plain ONNX Runtime and with the kernels alone. Prints one line of JSON: the largest difference of
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
    kinds = {"start": TensorProto.INT64, "positions": TensorProto.INT64, "rows": TensorProto.INT64}
    kinds |= {"lasts": TensorProto.INT32, "total": TensorProto.INT32}
    kind = lambda name: kinds.get(name, TensorProto.FLOAT)
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


HEADS, KV_HEADS, SIZE, POSITIONS = 6, 2, 16, 64
CACHE = ["batch", KV_HEADS, "past", SIZE]


def attention(rotation="nodes", norms="parts", seen=(), unread=(), key_epsilon=1e-5, positions=("batch", "tokens"), **attributes):
    """Rotation as "nodes", by the operator itself ("counted") or not at all (None); norms as their "parts",
    as a node ("one") or not at all."""
    angles = normal(POSITIONS, SIZE // 2)
    constants = {"cos": np.cos(angles), "sin": np.sin(angles), "per_head": np.array([-1, SIZE])}
    constants |= {"two": np.array(2, np.float32), "last_axis": np.array([-1])}
    nodes = []

    def norm(name, epsilon):
        weight, x = name + ".w", name + ".heads"
        constants[weight] = normal(SIZE)
        if norms == "one":
            return [node("SimplifiedLayerNormalization", [x, weight], [name + ".normed"], epsilon=epsilon)]
        constants[name + ".e"] = np.array(epsilon, np.float32)
        return [
            node("Pow", [x, "two"], [name + ".square"]),
            node("ReduceMean", [name + ".square", "last_axis"], [name + ".mean"], keepdims=1),
            node("Add", [name + ".mean", name + ".e"], [name + ".sum"]),
            node("Sqrt", [name + ".sum"], [name + ".root"]),
            node("Div", [x, name + ".root"], [name + ".divided"]),
            node("Mul", [name + ".divided", weight], [name + ".normed"]),
        ]

    def prepared(name, heads, epsilon):
        value = name
        if norms:
            nodes.append(node("Reshape", [value, "per_head"], [name + ".heads"]))
            nodes.extend(norm(name, epsilon))
            nodes.append(node("Reshape", [name + ".normed", "rows"], [name + ".flat"]))
            value = name + ".flat"
        if rotation == "nodes":
            sizes = dict(num_heads=heads)
            nodes.append(microsoft("RotaryEmbedding", [value, "positions", "cos", "sin"], [name + ".r"], **sizes))
            value = name + ".r"
        return value

    query, key = prepared("q", HEADS, 1e-5), prepared("k", KV_HEADS, key_epsilon)
    inputs = [query, key, "v", "past_key", "past_value", "lasts", "total"]
    inputs += ["cos", "sin"] if rotation == "counted" else []
    attributes |= {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": 0.2}
    attributes |= {"do_rotary": 1} if rotation == "counted" else {}
    names = ["y", "key", "value"]
    nodes.append(microsoft("GroupQueryAttention", inputs, names, **attributes))
    rows = lambda heads: ["batch", "tokens", heads * SIZE]
    shapes = {"q": rows(HEADS), "k": rows(KV_HEADS), "v": rows(KV_HEADS), "past_key": CACHE, "past_value": CACHE}
    shapes |= {"lasts": ["batch"], "total": []}
    shapes |= {"positions": list(positions)} if rotation == "nodes" else {}
    shapes |= {"rows": [3]} if norms else {}
    outputs = {"y": rows(HEADS), "key": ["batch", KV_HEADS, "all", SIZE], "value": ["batch", KV_HEADS, "all", SIZE]}
    outputs |= {name: None for name in seen}
    outputs = {name: shape for name, shape in outputs.items() if name not in unread}
    return model(nodes, shapes, outputs, constants)


def attention_feed(tokens, lengths, room=0, rotation="nodes", norms="parts"):
    """New tokens of sequences that have so many already; beyond these, caches have more room."""
    batch, total = len(lengths), max(lengths) + tokens
    rows = lambda heads: normal(batch, tokens, heads * SIZE)
    past = max(lengths) + room
    feed = {"q": rows(HEADS), "k": rows(KV_HEADS), "v": rows(KV_HEADS)}
    feed |= {name: normal(batch, KV_HEADS, past, SIZE) for name in ("past_key", "past_value")}
    feed |= {"lasts": np.array(lengths, np.int32) + tokens - 1, "total": np.array(total, np.int32)}
    if rotation == "nodes":
        feed["positions"] = np.array(lengths)[:, None] + np.arange(tokens)
    feed |= {"rows": np.array([batch, tokens, -1])} if norms else {}
    return feed


def attention_difference(bytes, feed, shared=False):
    """With new keys and values in the memory of the old ones, or not. What is behind the tokens is not looked at."""
    results = []
    for ours in (False, True):
        run = session(bytes, ours)
        if not shared:
            found = run.run(None, feed)
        else:
            binding = run.io_binding()
            values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_output("y", "cpu")
            for name in ("key", "value"):
                binding.bind_ortvalue_output(name, values["past_" + name])
            run.run_with_iobinding(binding)
            found = [value.numpy() for value in binding.get_outputs()]
        lengths = feed["lasts"] + 1
        caches = [[cache[row, :, :length] for row, length in enumerate(lengths)] for cache in found[1:]]
        results.append([found[0], *(np.concatenate([part.ravel() for part in cache]) for cache in caches)])
    return max(float(np.linalg.norm(ours - plain) / np.linalg.norm(plain)) for plain, ours in zip(*results))


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

for rotation in ("nodes", "counted", None):
    for norms in ("parts", "one", None):
        bytes = attention(rotation, norms)
        for tokens, lengths, room, shared in [
            (1, [0], 0, False),
            (1, [9], 0, False),
            (1, [9, 4], 0, False),
            (1, [40, 3], 23, True),
            (20, [0, 0], 0, False),
            (20, [0], 30, True),
            (7, [30], 0, False),
            (7, [30], 10, True),
        ]:
            name = f"attention of {tokens} after {lengths}, room {room}, shared {shared}, {rotation}, {norms}"
            feed = attention_feed(tokens, lengths, room, rotation, norms)
            differences[name] = attention_difference(bytes, feed, shared)

# A single position is that of each sequence's first new token.
feed = attention_feed(3, [0, 0]) | {"positions": np.array([9])}
differences["attention from one position on"] = attention_difference(attention(positions=[1]), feed)
# What is behind the tokens is zero, as in ONNX Runtime's.
feed = attention_feed(1, [4, 9, 2], room=3)
pairs = zip(*(session(attention(), ours).run(["key", "value"], feed) for ours in (False, True)))
report["same_behind_tokens"] = all(np.array_equal(a[row, :, end:], b[row, :, end:]) for a, b in pairs for row, end in ((0, 5), (2, 3)))

wrong = {
    "soft caps": attention(None, None, softcap=5.0),
    "a window": attention(None, None, local_window_size=8),
    "smooth attention": attention(None, None, smooth_softmax=1),
    "interleaved rotation": attention("counted", None, rotary_interleaved=1),
    "norms of another kind than each other": attention("nodes", "parts", key_epsilon=1e-3),
    "queries that are read elsewhere": attention("nodes", "parts", seen=["q.normed"]),
    "keys that nobody reads": attention(None, None, unread=["key"]),
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

# What no memory is there for, and positions without cosines, are refused.
report["refused"] = []
for name, change in {
    "more tokens than there is room": {"lasts": np.array([60], np.int32)},
    "fewer tokens than none": {"lasts": np.array([-9], np.int32)},
    "the smallest of all lengths": {"lasts": np.array([-(2**31)], np.int32)},
    "lengths of other sequences": {"lasts": np.array([9, 9], np.int32)},
    "a negative total": {"total": np.array(-1, np.int32)},
    "positions beyond the cosines": {"positions": np.array([[POSITIONS]])},
    "negative positions": {"positions": np.array([[-1]])},
    "fewer positions than tokens": {"positions": np.zeros((1, 0), np.int64)},
    "keys of fewer tokens": {"k": normal(1, 0, KV_HEADS * SIZE)},
}.items():
    run = session(attention(), True)
    try:
        run.run(None, attention_feed(1, [9]) | change)
        report["refused"].append(f"{name} is not refused")
    except Exception as error:
        report["refused"].append(str(error).splitlines()[0])

for name, bytes in wrong.items():
    session(bytes, False)
    try:
        session(bytes, True)
        report["wrongly_taken"].append(name)
    except Exception as error:
        assert "fallback to CPU EP has been explicitly disabled" in str(error), error
print(json.dumps(report))

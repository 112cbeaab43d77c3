"""Spells out, in place, the attention of an exported folder whose recipe has `packed_qkv`, so that a CPU runs it.

    python unpack_attention.py FOLDER...

`GroupQueryAttention` may be given queries, keys and values side by side, and the weights of norms. ONNX Runtime documents
that as the same as parting them, and norming each head of the first two: x / sqrt(mean(x^2) + epsilon) * weight.
Prints one line of JSON: how many were spelled out in each folder.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import helper, numpy_helper

QUERY, KEY, VALUE, Q_NORM, K_NORM = 0, 1, 2, 14, 15


def spelled_out(node, head_size):
    """The nodes that stand for one attention, and their constants."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    epsilon = attributes.pop("qk_norm_epsilon")
    heads = [attributes["num_heads"], attributes["kv_num_heads"], attributes["kv_num_heads"]]
    assert attributes["do_rotary"] == 1 and len(node.input) == 16 and not any(node.input[9:14]), node
    name = lambda what: f"{node.name}/{what}"
    constants, nodes = [], []

    def constant(what, values):
        constants.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name(what)))
        return name(what)

    parts = [name(part) for part in ("query", "key", "value")]
    sizes = constant("sizes", [head_size * count for count in heads])
    nodes.append(helper.make_node("Split", [node.input[QUERY], sizes], parts, axis=2))
    for part, weight, count in ((QUERY, Q_NORM, heads[0]), (KEY, K_NORM, heads[1])):
        before = name(f"{part}/heads")
        normed, after = name(f"{part}/normed"), name(f"{part}/side_by_side")
        shape = constant(f"{part}/shape", [0, 0, count, head_size])
        nodes.append(helper.make_node("Reshape", [parts[part], shape], [before]))
        inputs = [before, node.input[weight]]
        nodes.append(helper.make_node("SimplifiedLayerNormalization", inputs, [normed], axis=-1, epsilon=epsilon))
        nodes.append(helper.make_node("Reshape", [normed, constant(f"{part}/flat", [0, 0, -1])], [after]))
        parts[part] = after
    inputs = [*parts, *node.input[3:9]]
    nodes.append(helper.make_node(node.op_type, inputs, node.output, node.name, domain=node.domain, **attributes))
    return nodes, constants


report = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    count = 0
    for path in folder.glob("onnx/decoder*.onnx"):
        model = onnx.load(path, load_external_data=False)
        sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
        nodes = []
        for node in model.graph.node:
            if node.op_type != "GroupQueryAttention":
                nodes.append(node)
                continue
            assert not node.input[KEY] and not node.input[VALUE], node
            more, constants = spelled_out(node, sizes[node.input[Q_NORM]][0])
            nodes += more
            model.graph.initializer.extend(constants)
            count += 1
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        path.write_bytes(model.SerializeToString())
    manifest = folder / "lfm2vl.yaml"
    text = manifest.read_text()
    assert "packed_qkv: true" in text
    manifest.write_text(text.replace("packed_qkv: true", "packed_qkv: false"))
    report[str(folder)] = count
print(json.dumps(report))

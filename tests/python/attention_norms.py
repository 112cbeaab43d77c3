"""Whether ONNX Runtime can move the norms of queries and keys into the attention that follows.

    python attention_norms.py DECODER.onnx...

It does so on CUDA (its `GroupQueryAttentionPreNormFusion`) where attention rotates, and where each norm stands between
two `Reshape` whose last axis it knows: the size of a head, and that of all heads. Prints one line of JSON: for each
file the axes that ONNX Runtime infers, [head, heads] of queries and keys of each attention.
"""

import json
import pathlib
import sys

import onnx
import onnxruntime as ort


def chain(value, producers):
    """The values before and after the norm that a value comes from, spelled out."""
    after = producers[value]
    steps = [after.op_type]
    node = producers[after.input[0]]
    while node.op_type != "Reshape":
        steps.append(node.op_type)
        node = producers[node.input[0]]
    assert [step for step in steps if step != "Cast"] == ["Reshape", "Mul", "Div"], steps
    return node.output[0], value


report = {}
for path in map(pathlib.Path, sys.argv[1:]):
    model = onnx.load(path, load_external_data=False)
    producers = {output: node for node in model.graph.node for output in node.output}
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    values = []
    for node in attentions:
        assert any(a.name == "do_rotary" and a.i == 1 for a in node.attribute)
        values += [value for index in (0, 1) for value in chain(node.input[index], producers)]
    for value in values:
        # Without a shape, so that ONNX Runtime has to find it.
        output = onnx.helper.make_empty_tensor_value_info(value)
        model.graph.output.append(output)
    beside = path.with_suffix(".shapes.onnx")
    beside.write_bytes(model.SerializeToString())
    session = ort.InferenceSession(beside, providers=["CPUExecutionProvider"])
    beside.unlink()
    last = {output.name: output.shape[-1] for output in session.get_outputs()}
    axes = [last[value] for value in values]
    report[path.name] = [axes[at : at + 4] for at in range(0, len(axes), 4)]
print(json.dumps(report))

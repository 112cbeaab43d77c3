"""Makes a folder as the community publishes them out of graphs with standard operators.

    python community_folder.py EXPORT OUT

EXPORT has the graphs in float32, with the logits of every position. OUT has no manifest, and two sets
of graphs under the names that Transformers.js gives them: float32 whose decoder wants position_ids, and
fp16 whose decoder keeps its state in float16 and wants num_logits_to_keep.
"""

import pathlib
import shutil
import sys

import onnx
from onnx import TensorProto, helper

source, out = map(pathlib.Path, sys.argv[1:])
(out / "onnx").mkdir(parents=True)
for file in source.iterdir():
    if file.suffix in {".json", ".jinja"} and not file.name.startswith("genai"):
        shutil.copy(file, out)
for file in (source / "onnx").iterdir():
    shutil.copy(file, out / "onnx")
    if file.stem in {"vision_encoder", "embed_tokens"} and file.suffix == ".onnx":
        model = onnx.load(file)
        data = f"{file.stem}_fp16.onnx_data"
        onnx.save(model, out / "onnx" / f"{file.stem}_fp16.onnx", save_as_external_data=True, location=data)


def decoder():
    return onnx.load(source / "onnx" / "decoder_model_merged.onnx")


def save(model, suffix):
    name = f"decoder_model_merged{suffix}.onnx"
    (out / "onnx" / f"{name}_data").unlink(missing_ok=True)
    onnx.save(model, out / "onnx" / name, save_as_external_data=True, location=f"{name}_data")


def scalar(graph, name, value):
    graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(value)], value))


# Positions are not counted from the mask, but given.
model = decoder()
graph = model.graph
range_node = next(n for n in graph.node if n.op_type == "Range" and "rotary" not in n.name)
scalar(graph, "flat", [-1])
graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch_size", "sequence"]))
graph.node.insert(0, helper.make_node("Reshape", ["position_ids", "flat"], ["positions"], "positions"))
for node in graph.node:
    if node.name != range_node.name:
        node.input[:] = ["positions" if name == range_node.output[0] else name for name in node.input]
graph.node.remove(range_node)
save(model, "")

# Half the memory for the state, and only as many logits as are asked for.
model = decoder()
graph = model.graph
casts = []
for value in graph.input:
    if value.name.startswith("past"):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        inner = f"{value.name}.float"
        casts.append(helper.make_node("Cast", [value.name], [inner], f"{inner}.cast", to=TensorProto.FLOAT))
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
for value in graph.output:
    if value.name.startswith("present"):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        inner = f"{value.name}.float"
        for node in graph.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
            node.output[:] = [inner if name == value.name else name for name in node.output]
        graph.node.append(helper.make_node("Cast", [inner], [value.name], f"{inner}.cast", to=TensorProto.FLOAT16))
for index, cast in enumerate(casts):
    graph.node.insert(index, cast)
graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
for node in graph.node:
    node.output[:] = ["all_logits" if name == "logits" else name for name in node.output]
for name, value in {"axis": [1], "end": [2**62], "one": [1]}.items():
    scalar(graph, name, value)
graph.node.extend([
    helper.make_node("Neg", ["num_logits_to_keep"], ["negative"], "negative"),
    helper.make_node("Reshape", ["negative", "one"], ["first"], "first"),
    helper.make_node("Slice", ["all_logits", "first", "end", "axis"], ["logits"], "kept"),
])
save(model, "_fp16")
for path in sorted((out / "onnx").glob("*.onnx")):
    onnx.checker.check_model(str(path), full_check=True)

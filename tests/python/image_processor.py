"""Checks graphs of image processors against what transformers gives.

    python image_processor.py FOLDER [--cut]

FOLDER has the graphs and `cases.json`: images with the hash of their pixels, the layout or both, and sizes
with their tile grid. For the sizes the arithmetic on them has been cut out of the graphs: that is what `--cut`
does, into `layouts/`. Prints what was compared as JSON, and fails unless all of it is equal.
"""

import functools
import hashlib
import json
import pathlib
import sys

import numpy as np
import onnx
import onnx.utils
import onnxruntime

root = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(root / "testdata/make"))
from noise import noise

folder = pathlib.Path(sys.argv[1])
cases = json.loads((folder / "cases.json").read_text())
marks = np.array([int(id) for id, token in cases["tokens"].items() if token.startswith("<|img_row_")])
options = onnxruntime.SessionOptions()
options.log_severity_level = 3


def session(model):
    return onnxruntime.InferenceSession(model, options)


@functools.cache
def processor(graph):
    return session(folder / graph)


@functools.cache
def layout(graph):
    return session(folder / "layouts" / graph)


def cut(graph):
    """From height and width to the ids and shapes alone."""
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / graph))
    shapes = [node.output[0] for node in model.graph.node if node.input[0] == "pixels" and node.op_type == "Shape"]
    sizes = [node.output[0] for node in model.graph.node if node.input[0] in shapes][:2]
    part = onnx.utils.Extractor(model).extract_model(sizes, ["image_token_ids", "spatial_shapes"])
    onnx.save(part, folder / "layouts" / graph)


def shortened(ids):
    """`<image>*N` for each run of image tokens, as the goldens write it."""
    parts = []
    for token in (cases["tokens"][str(id)] for id in ids):
        if token != "<image>":
            parts.append(token)
        elif parts and parts[-1].startswith("<image>"):
            parts[-1] = f"<image>*{int(parts[-1][8:]) + 1}"
        else:
            parts.append("<image>*1")
    return " ".join(parts)


def expected_tiles(rows, cols):
    split = rows * cols > 1
    return [f"<|img_row_{r}_col_{c}|>" for r in range(1, rows + 1) for c in range(1, cols + 1)] if split else []


def tiles(ids):
    return [cases["tokens"][str(id)] for id in ids[np.isin(ids, marks)]]


def check_image(case):
    shape = (case["height"], case["width"], 3)
    pixels = noise(np.prod(shape), case["seed"]).reshape(shape) if case["hashed"] else np.zeros(shape, np.uint8)
    types = {bool: np.bool_, int: np.int64}
    inputs = {name: np.array(value, types[type(value)]) for name, value in case["inputs"].items()}
    values, mask, shapes, ids, tokens = processor(case["graph"]).run(None, {"pixels": pixels, **inputs})
    assert values.dtype == np.float32 and not values[mask == 0].any()
    assert (np.sort(mask, axis=1)[:, ::-1] == mask).all() and (mask.sum(1) == shapes.prod(1)).all()
    assert shapes.tolist() == case["spatial_shapes"]
    assert tiles(ids) == expected_tiles(case["rows"], case["cols"])
    assert tokens == sum(cases["tokens"][str(id)] == "<image>" for id in ids)
    if "image_tokens" in case:
        assert tokens == case["image_tokens"]
    if "expansion" in case:
        assert shortened(ids) == case["expansion"]
    if "pixel_values_shape" in case:
        assert list(values.shape) == case["pixel_values_shape"] and mask.sum(1).tolist() == case["mask_sums"]
    if "padded_patches" in case:
        largest = shapes.prod(1).max()
        assert values.shape[1] == (case["padded_patches"] if case["inputs"].get("do_pad", True) else largest)
    patches = values[mask == 1]
    if case["hashed"] == "levels":
        patches = np.rint((patches * 0.5 + 0.5) * 255).astype(np.uint8)
    if case["hashed"]:
        assert hashlib.sha256(patches.tobytes()).hexdigest() == case["sha256"]


def check_size(case):
    model = layout(case["graph"])
    sizes = [np.array(case["height"]), np.array(case["width"])]
    ids, shapes = model.run(None, {value.name: size for value, size in zip(model.get_inputs(), sizes)})
    assert tiles(ids) == expected_tiles(case["rows"], case["cols"])
    if "image_size" in case:
        assert (16 * shapes[-1]).tolist() == case["image_size"]


if "--cut" in sys.argv:
    (folder / "layouts").mkdir()
    for graph in {case["graph"] for case in cases["sizes"]}:
        cut(graph)
    sys.exit()

for kind, check in [("images", check_image), ("sizes", check_size)]:
    for case in cases[kind]:
        try:
            check(case)
        except Exception:
            print(case, file=sys.stderr)
            raise
print(json.dumps({"onnxruntime": onnxruntime.__version__, "images": len(cases["images"]), "sizes": len(cases["sizes"])}))

"""Checks every graph of exported folders with ONNX's own checker and shape inference.

    python check_onnx.py FOLDER...

Fails when a graph does not pass, an input or output has no shape, a node has no name, or a graph
of the `portable` recipe uses an operator outside the standard.
"""

import pathlib
import sys

import onnx

SCALARS = {
    "num_logits_to_keep",
    "total_sequence_length",
    *["do_image_splitting", "min_image_tokens", "max_image_tokens", "max_tiles", "use_thumbnail", "do_pad", "tokens"],
}

for folder in map(pathlib.Path, sys.argv[1:]):
    graphs = sorted((folder / "onnx").glob("*.onnx"))
    assert graphs, f"no graphs in {folder}"
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        for value in [*model.graph.input, *model.graph.output]:
            dims = value.type.tensor_type.shape.dim
            is_scalar = value.name in SCALARS
            assert bool(dims) != is_scalar and all(d.dim_value or d.dim_param for d in dims), f"{path}: {value.name}"
        names = [node.name for node in model.graph.node]
        assert all(names) and len(set(names)) == len(names), f"{path}: node names"
        metadata = {p.key: p.value for p in model.metadata_props}
        domains = {node.domain for node in model.graph.node}
        if metadata["lfm2vl.recipe"] == "portable":
            assert domains == {""} and len(model.opset_import) == 1, f"{path}: {domains}"
        print(path.name, metadata["lfm2vl.recipe"], len(names), "nodes", sorted(domains))

"""Prints the shapes of all values of graphs as ONNX's own shape inference knows them: for each graph a line
of JSON with sizes, and null for those that are not known.

    python shapes.py GRAPH.onnx...
"""

import json
import sys

import onnx

for path in sys.argv[1:]:
    model = onnx.load(path, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }
    print(json.dumps(shapes))

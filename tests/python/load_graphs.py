"""Loads graphs that the installed onnxruntime should be able to load, and prints how many.

    python load_graphs.py FOLDER...

Of each exported folder those graphs are loaded whose operators this release has, by the folder's lfm2vl.yaml.
"""

import json
import pathlib
import re
import sys

import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
loaded = 0
for folder in map(pathlib.Path, sys.argv[1:]):
    oldest = re.search(r"^onnxruntime: '?(\d+)\.(\d+)", (folder / "lfm2vl.yaml").read_text(), re.MULTILINE)
    if tuple(map(int, oldest.groups())) > version:
        continue
    for graph in sorted(folder.glob("onnx/*.onnx")):
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        loaded += 1
print(json.dumps({"onnxruntime": onnxruntime.__version__, "loaded": loaded}))

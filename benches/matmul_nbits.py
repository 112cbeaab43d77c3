"""How fast ONNX Runtime's MatMulNBits reads 4-bit weights for one token: from memory, and from the processor's cache.

    python3 matmul_nbits.py [--threads N]

Needs numpy, onnx and onnxruntime. Products of 1024 x 4608 with random weights, one after the other.
"""

import argparse
import os
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=os.cpu_count())
args = parser.parse_args()
INPUTS, OUTPUTS, REPEAT = 1024, 4608, 25


def measure(products, block):
    """Bytes of the weights, and bytes a second."""
    random, nodes, weights = np.random.default_rng(0), [], []
    blocks = INPUTS // block
    for i in range(products):
        integers = random.integers(0, 255, (OUTPUTS, blocks, block // 2), dtype=np.uint8)
        scales = random.random(OUTPUTS * blocks, dtype=np.float32)
        zeros = random.integers(0, 255, OUTPUTS * ((blocks + 1) // 2), dtype=np.uint8)
        names = [f"{kind}{i}" for kind in ("integers", "scales", "zeros")]
        weights += map(numpy_helper.from_array, (integers, scales, zeros), names)
        sizes = {"K": INPUTS, "N": OUTPUTS, "bits": 4, "block_size": block, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", ["x", *names], [f"y{i}"], domain="com.microsoft", **sizes))
    value = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
    outputs = [value(f"y{i}", OUTPUTS) for i in range(products)]
    graph = helper.make_graph(nodes, "products", [value("x", INPUTS)], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(helper.make_model(graph, opset_imports=opsets).SerializeToString(), options)
    x, times = np.ones((1, INPUTS), np.float32), []
    for _ in range(REPEAT):
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    size = sum(len(weight.raw_data) for weight in weights)
    return size, size / sorted(times)[REPEAT // 2]


for products in (80, 30):
    for block in (32, 64, 128):
        size, speed = measure(products, block)
        print(f"{size / 1e6:4.0f} MB in blocks of {block:3}: {speed / 1e9:5.1f} GB/s")

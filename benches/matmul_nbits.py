"""How fast ONNX Runtime's MatMulNBits reads 4-bit weights for one token, from memory and from the processor's cache; what
a wider product saves; and how fast it computes with many rows.

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


def measure(products, block, rows=1, outputs=OUTPUTS, bits=4):
    """Bytes of the weights, and seconds of a run; blocks of 0 are float32
    weights, of -1 8-bit weights and 8-bit inputs with one scale."""
    random, nodes, weights = np.random.default_rng(0), [], []
    for i in range(products):
        if block == -1:
            integers = random.integers(-127, 127, (INPUTS, outputs), dtype=np.int8)
            names = [f"integers{i}", f"scales{i}"]
            weights += map(numpy_helper.from_array, (integers, np.ones(outputs, np.float32)), names)
            nodes.append(helper.make_node("DynamicQuantizeMatMul", ["x", *names], [f"y{i}"], domain="com.microsoft"))
            continue
        if block == 0:
            weights.append(numpy_helper.from_array(random.random((INPUTS, outputs), dtype=np.float32), f"w{i}"))
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
            continue
        blocks = INPUTS // block
        integers = random.integers(0, 255, (outputs, blocks, block * bits // 8), dtype=np.uint8)
        scales = random.random(outputs * blocks, dtype=np.float32)
        zeros = random.integers(0, 255, outputs * ((blocks * bits + 7) // 8), dtype=np.uint8)
        names = [f"{kind}{i}" for kind in ("integers", "scales", "zeros")]
        weights += map(numpy_helper.from_array, (integers, scales, zeros), names)
        sizes = {"K": INPUTS, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", ["x", *names], [f"y{i}"], domain="com.microsoft", **sizes))
    value = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, size])
    results = [value(f"y{i}", outputs) for i in range(products)]
    graph = helper.make_graph(nodes, "products", [value("x", INPUTS)], results, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(helper.make_model(graph, opset_imports=opsets).SerializeToString(), options)
    x, times = np.ones((rows, INPUTS), np.float32), []
    for _ in range(REPEAT):
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return sum(len(weight.raw_data) for weight in weights), sorted(times)[REPEAT // 2]


print("one row, products of 1024 x 4608 one after the other")
for products in (80, 30):
    for block in (32, 64, 128):
        size, seconds = measure(products, block)
        print(f"{size / 1e6:4.0f} MB in blocks of {block:3}: {size / seconds / 1e9:5.1f} GB/s")
print("one row, 80 products of 1024 x 4608 and 40 of 1024 x 9216, blocks of 32")
for products, outputs in ((80, OUTPUTS), (40, 2 * OUTPUTS)):
    print(f"{products} products: {1e3 * measure(products, 32, outputs=outputs)[1]:5.2f} ms")
print("512 rows, 4 products of 1024 x 4608")
for bits, block in ((32, 0), (8, -1), *((bits, block) for bits in (4, 8) for block in (32, 64, 128))):
    operations = 2 * 512 * 4 * INPUTS * OUTPUTS
    seconds = measure(4, block, rows=512, bits=bits)[1]
    names = {0: "float32 weights", -1: "8-bit inputs, one scale"}
    name = names.get(block, f"{bits} bits in blocks of {block:3}")
    print(f"{name:24}: {operations / seconds / 1e9:4.0f} billion operations a second")

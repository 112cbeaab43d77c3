"""image_processor.onnx in onnxruntime, on two threads: one line of JSON for each image path that comes in.

    python3 image_graph.py image_processor.onnx < paths        # needs onnxruntime, numpy and pillow
"""

import json
import resource
import sys
import time

import numpy as np
import onnxruntime
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options)
for line in sys.stdin:
    start = time.perf_counter()
    pixels = np.asarray(Image.open(line.strip()).convert("RGB"))
    decoded = time.perf_counter()
    session.run(None, {"pixels": pixels})
    done = time.perf_counter()
    times = {"decode_ms": 1e3 * (decoded - start), "process_ms": 1e3 * (done - decoded)}
    times["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    # Its threads wait busily for a while, which would slow down the peer that runs next.
    time.sleep(0.1)
    print(json.dumps(times), flush=True)

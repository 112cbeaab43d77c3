"""transformers' image processor: one line of JSON for each image path that comes in.

    python3 preprocess.py < paths        # needs transformers, torch, torchvision and pillow
"""

import json
import sys
import time

from transformers import Lfm2VlImageProcessor
from transformers.image_utils import load_image

# The settings of the released models; the class's own mean and standard deviation are these too.
processor = Lfm2VlImageProcessor()
for line in sys.stdin:
    start = time.perf_counter()
    image = load_image(line.strip())
    decoded = time.perf_counter()
    processor(images=[image], return_tensors="pt")
    done = time.perf_counter()
    times = {"decode_ms": 1e3 * (decoded - start), "process_ms": 1e3 * (done - decoded)}
    print(json.dumps(times), flush=True)

"""Checks that a graph with settings as inputs refuses what cannot be processed, at nodes that say why.

    python image_processor_refusals.py image_processor.onnx
"""

import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options)


def run(width, height, **inputs):
    inputs = {name: np.array(value) for name, value in inputs.items()}
    return session.run(["tokens"], {"pixels": np.zeros((height, width, 3), np.uint8), **inputs})[0]


REFUSED = [
    ("the_image_has_no_pixels", (0, 0), {}),
    ("the_image_has_no_pixels", (7, 0), {}),
    ("the_image_is_too_long_and_thin", (50_000, 1), {}),
    ("the_image_is_too_long_and_thin", (1, 50_000), {}),
    ("the_image_is_too_long_and_thin", (5_000_000, 1), {}),
    ("max_tiles_is_out_of_range", (1500, 1500), {"max_tiles": 1}),
    ("max_tiles_is_out_of_range", (1500, 1500), {"max_tiles": -5}),
    ("max_tiles_is_out_of_range", (1500, 1500), {"max_tiles": 11}),
    ("the_limits_of_image_tokens_do_not_go_together", (300, 300), {"min_image_tokens": 300, "max_image_tokens": 100}),
    ("the_limits_of_image_tokens_do_not_go_together", (300, 300), {"min_image_tokens": 0}),
]
for name, size, inputs in REFUSED:
    try:
        run(*size, **inputs)
    except Exception as error:
        assert name in str(error), f"{size} {inputs}: {error}"
    else:
        sys.exit(f"{size} {inputs} was not refused")
assert run(1500, 1500, max_tiles=2) > 0 and run(1, 1) > 0
# Without splitting no thumbnail is made, but the one view is as thin.
assert run(40_000, 40, do_image_splitting=False) > 0

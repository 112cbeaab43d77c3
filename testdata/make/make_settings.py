"""Each setting of `Lfm2VlImageProcessor` replaced for one call, as hashes.

    python make_settings.py ../preprocess/settings.json

The images are those of `noise.py`. `sha256` is of all valid values as little-endian
float32, patch by patch.
"""

import hashlib
import json
import sys

import numpy as np
import torch
from noise import noise
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

BASE = {"tile_size": 128, "min_image_tokens": 4, "max_image_tokens": 16}
OVERRIDES = [
    {},
    {"min_image_tokens": 1}, {"min_image_tokens": 16}, {"max_image_tokens": 4}, {"max_image_tokens": 64}, {"max_image_tokens": 100},
    {"min_tiles": 1}, {"min_tiles": 6}, {"max_tiles": 2}, {"max_tiles": 4}, {"max_tiles": 12}, {"min_tiles": 1, "max_tiles": 1}, {"min_tiles": 9, "max_tiles": 9},
    {"tile_size": 64}, {"tile_size": 256}, {"tile_size": 32},
    {"max_pixels_tolerance": 0.5}, {"max_pixels_tolerance": 1.5}, {"max_pixels_tolerance": 10.0},
    {"do_image_splitting": False}, {"use_thumbnail": False}, {"do_image_splitting": False, "use_thumbnail": False},
    {"resample": 3}, {"resample": 2}, {"resample": 1}, {"resample": 0}, {"resample": "bilinear"}, {"resample": "bicubic"}, {"resample": "lanczos"}, {"resample": "nearest-exact"},
    {"resample": "nearest"},
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, {"image_mean": [0.0, 0.5, 1.0]}, {"image_std": [0.25, 1.0, 2.0]},
    {"rescale_factor": 1 / 127.5}, {"rescale_factor": 0.01, "do_normalize": False}, {"do_normalize": False}, {"do_rescale": False}, {"do_rescale": False, "do_normalize": False},
    {"do_normalize": False, "resample": 3, "use_thumbnail": False},
    {"encoder_patch_size": 8}, {"encoder_patch_size": 32}, {"downsample_factor": 1}, {"downsample_factor": 4}, {"encoder_patch_size": 8, "downsample_factor": 4},
]
IMAGES = [(90, 70, 1), (420, 300, 2)]
# Of the rarer ways of resizing, more sizes: enlarged, shrunk, long, at powers of two.
SIZES = [(1, 1), (3, 200), (17, 33), (31, 1000), (64, 64), (128, 96), (127, 255), (256, 256), (333, 77), (512, 384), (640, 480), (719, 1279), (1000, 31), (1023, 767)]
RESAMPLED = [({"resample": mode, "do_image_splitting": split}, [(*size, 3 + i) for i, size in enumerate(SIZES)]) for mode in (0, 1, "nearest") for split in (True, False)]

rows = []
for overrides, images in [(overrides, IMAGES) for overrides in OVERRIDES] + RESAMPLED:
    for width, height, seed in images:
        pixels = noise(width * height * 3, seed).reshape(height, width, 3)
        result = Lfm2VlImageProcessor(**BASE)(
            torch.from_numpy(pixels).permute(2, 0, 1), return_tensors="pt", return_row_col_info=True, **overrides
        )
        shapes = result["spatial_shapes"].tolist()
        valid = [view[: h * w] for view, (h, w) in zip(result["pixel_values"].numpy(), shapes)]
        rows.append(
            {
                "width": width,
                "height": height,
                "seed": seed,
                "settings": BASE,
                "overrides": overrides,
                "rows": int(result["image_rows"][0]),
                "cols": int(result["image_cols"][0]),
                "spatial_shapes": shapes,
                "padded_patches": result["pixel_values"].shape[1],
                "sha256": hashlib.sha256(np.concatenate(valid).astype("<f4").tobytes()).hexdigest(),
            }
        )
with open(sys.argv[1], "w") as file:
    file.write("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
print(len(rows))

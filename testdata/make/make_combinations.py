"""Many sizes and settings through `Lfm2VlImageProcessor`, as hashes.

    python make_combinations.py ../preprocess

`combinations.json`: 240 made-up images and settings, with the layout and the sha256 of all valid
pixels as uint8 levels, patch by patch. `sizes.csv`: the layout of 2,400 random sizes.
The images are those of `noise.py`.
"""

import csv
import hashlib
import json
import pathlib
import random
import sys

import numpy as np
import torch
from noise import noise
from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

out = pathlib.Path(sys.argv[1])
rng = random.Random(0)


def tokens(shapes, factor):
    return sum((-(-h // factor)) * (-(-w // factor)) for h, w in shapes)


rows = []
for seed in range(240):
    longest = rng.choice([40, 150, 400, 900])
    width, height = rng.randint(1, longest), rng.randint(1, longest)
    side = rng.choice([16, 16, 14])
    factor = rng.choice([2, 2, 2, 1, 3])
    tile = side * factor * rng.choice([2, 4, 5])
    low = rng.choice([1, 4, 9])
    settings = {
        "encoder_patch_size": side,
        "downsample_factor": factor,
        "tile_size": tile,
        "min_image_tokens": low,
        "max_image_tokens": low * rng.choice([2, 4, 16]),
        "min_tiles": 2,
        "max_tiles": rng.choice([2, 6, 10]),
        "max_pixels_tolerance": rng.choice([1.0, 2.0, 3.5]),
        "use_thumbnail": rng.random() < 0.7,
        "do_image_splitting": rng.random() < 0.85,
        "resample": rng.choice([2, 3]),
    }
    processor = Lfm2VlImageProcessor(**settings)
    pixels = noise(width * height * 3, seed).reshape(height, width, 3)
    result = processor(torch.from_numpy(pixels).permute(2, 0, 1), return_tensors="pt", return_row_col_info=True)
    shapes = result["spatial_shapes"].tolist()
    # Not by the mask: for a very long image the reference's is shorter than its patches.
    valid = [view[: h * w] for view, (h, w) in zip(result["pixel_values"].numpy(), shapes)]
    levels = np.rint((np.concatenate(valid).astype(np.float64) * 0.5 + 0.5) * 255).astype(np.uint8)
    rows.append(
        {
            "width": width,
            "height": height,
            "seed": seed,
            "settings": settings,
            "rows": int(result["image_rows"][0]),
            "cols": int(result["image_cols"][0]),
            "spatial_shapes": shapes,
            "image_tokens": tokens(shapes, factor),
            "sha256": hashlib.sha256(levels.tobytes()).hexdigest(),
        }
    )
(out / "combinations.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")

processor = Lfm2VlImageProcessor()
sizing = dict(max_image_tokens=256, encoder_patch_size=16, downsample_factor=2)
with open(out / "sizes.csv", "w", newline="") as file:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["width", "height", "rows", "cols", "image_height", "image_width"])
    for i in range(2400):
        longest = [300, 1500, 4000, 12000][i % 4]
        width, height = rng.randint(1, longest), rng.randint(1, longest)
        if i % 10 == 0:  # round numbers, where ties are
            width, height = -(-width // 50) * 50, -(-height // 50) * 50
        large = processor._is_image_too_large(height=height, width=width, max_pixels_tolerance=2.0, **sizing)
        w, h = processor.smart_resize(height=height, width=width, min_image_tokens=64, **sizing)
        cols, rows_ = processor._get_grid_layout(height, width, 2, 10, 512)[:2] if large else (1, 1)
        table.writerow([width, height, rows_, cols, h, w])

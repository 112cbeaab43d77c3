"""Makes the goldens small enough to commit, in place; run it after the other scripts.

    python thin.py ..

Whole prompts and variants: `pixel_values` (float, padded) become `pixels_uint8` (valid patches
only, before normalisation; `pixel_values = (v / 255 - 0.5) / 0.5`), and `logits` keep every
twelfth position and the last (`logits_positions` names them). What several files would show alike
is kept in the smaller ones. Preprocess: every 5th patch of each untiled view.
"""

import pathlib
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

root = pathlib.Path(sys.argv[1])
DROPPED = {
    "tiled": ["position_embeddings", "vision_last_hidden_state"],
    "two-images": ["position_embeddings", "vision_last_hidden_state", "step_logits"],
    "rgba": ["step_logits"],
    "tall": ["step_logits"],
}


def rewrite(path, change):
    with safe_open(path, "np") as f:
        metadata = f.metadata()
    tensors = change(dict(load_file(path)))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata)


def thin_prompt(path):
    def change(t):
        if "pixel_values" in t:
            values = t.pop("pixel_values")[t["pixel_attention_mask"].astype(bool)]
            levels = np.rint((values * 0.5 + 0.5) * 255)
            back = ((levels / 255).astype(np.float32) - 0.5) / 0.5
            assert np.abs(back - values).max() < 1e-7, path
            t["pixels_uint8"] = levels.astype(np.uint8)
        if "logits_positions" not in t:
            last = t["logits"].shape[1] - 1
            positions = np.array(sorted({*range(0, last, 12), last}))
            t["logits"] = t["logits"][:, positions]
            t["logits_positions"] = positions
        for name in DROPPED.get(path.stem, []):
            t.pop(name, None)
        return t

    rewrite(path, change)


def thin_preprocess(path):
    def change(t):
        for name in [n for n in t if n.endswith(".pixels_uint8")]:
            t[name + "_every_5th_patch"] = t.pop(name)[:, ::5]
        return t

    rewrite(path, change)


for path in [*root.glob("tiny-shapes/goldens/*.safetensors"), *root.glob("variants/*/golden.safetensors")]:
    thin_prompt(path)
for path in root.glob("preprocess/300x500.*"):
    path.unlink()
for path in root.glob("preprocess/*.safetensors"):
    thin_preprocess(path)

"""Small images in every format and EXIF orientation, and what transformers reads from them.

    python make_formats.py ../formats

Each file has a neighbour `NAME.rgb.png`: the pixels after `load_image` and `convert("RGB")`.
Formats that lose nothing only, so that every decoder must agree.
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from transformers.image_utils import load_image

out = pathlib.Path(sys.argv[1])
out.mkdir(exist_ok=True)
random = np.random.default_rng(0)
rgb = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8))
rgba = Image.fromarray(random.integers(0, 256, (5, 7, 4), np.uint8))
second = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8))

rgb.save(out / "rgb.bmp")
rgb.save(out / "rgb.webp", lossless=True)
rgba.save(out / "rgba.webp", lossless=True, exact=True)
rgba.save(out / "rgba.png")
rgb.convert("L").save(out / "gray.png")
rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(out / "palette.png")
rgb.convert("1").save(out / "bits.png")
rgba.convert("LA").save(out / "gray-alpha.png")
rgb.quantize(16).save(out / "animated.gif", save_all=True, append_images=[second.quantize(16)])
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb.save(out / f"orientation-{orientation}.png", exif=exif)

for path in sorted(out.iterdir()):
    if not path.name.endswith(".rgb.png"):
        load_image(str(path)).convert("RGB").save(out / f"{path.name}.rgb.png")

"""Writes the images that are measured with: smooth noise of several scales, lines and text.

    python3 make_photos.py FOLDER        # needs numpy and pillow
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def photo(width, height, seed):
    random = np.random.default_rng(seed)
    levels = 128 + random.normal(0, 3, (height, width, 3))
    for detail in (4, 16, 64, 256):
        for channel in range(3):
            coarse = random.normal(0, 1, (detail * height // width + 2, detail + 1))
            smooth = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.BICUBIC)
            levels[..., channel] += np.asarray(smooth) * 60 / detail**0.5
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(60):
        x, y = int(random.integers(width)), int(random.integers(height))
        radius = int(random.integers(5, width // 10))
        colour = tuple(int(c) for c in random.integers(0, 255, 3))
        draw.ellipse([x - radius, y - radius // 2, x + radius, y + radius // 2], outline=colour, width=3)
        draw.text((x, y), f"The quick brown fox {i}", fill=colour)
    return image


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
photo(4000, 3000, 1).save(folder / "4000x3000.jpg", quality=90)
photo(1280, 720, 2).save(folder / "1280x720.jpg", quality=90)
photo(512, 512, 3).save(folder / "512x512.png")
photo(256, 256, 4).save(folder / "256x256.png")
photo(2048, 1024, 5).save(folder / "2048x1024.png")

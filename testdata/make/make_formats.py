"""Small images in every format and EXIF orientation, and what transformers reads from them.

    python make_formats.py ../formats

Each file has a neighbour `NAME.rgb.png`: the pixels after `load_image`, which turns them as EXIF
or XMP says and converts them with `convert("RGB")`.
"""

import pathlib
import struct
import sys
import zlib

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

    rgb.save(out / f"orientation-{orientation}.jpg", exif=exif, quality=95)


def png(name, width, height, depth, colour, rows, *chunks):
    """A PNG as Pillow does not write it; `rows` are the bytes of all rows."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    size = len(rows) // height
    lines = b"".join(b"\0" + rows[i : i + size] for i in range(0, len(rows), size))
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    (out / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


# 16 bits: some levels below 256 and some at the edges of rounding.
wide = lambda channels: np.concatenate(
    [random.integers(0, 65536, 15 * channels), random.integers(0, 400, 15 * channels), [127, 128, 255, 256, 383, 384, 65407, 65408, 65535, 0, 1, 2][: 5 * channels]]
    + [np.zeros(max(0, 5 * channels - 12), int)]
).astype(">u2").tobytes()
png("gray-16.png", 7, 5, 16, 0, wide(1))
png("gray-alpha-16.png", 7, 5, 16, 4, wide(2))
png("rgb-16.png", 7, 5, 16, 2, wide(3))
png("rgba-16.png", 7, 5, 16, 6, wide(4))
levels = lambda channels: random.integers(0, 256, 35 * channels, np.uint8).tobytes()
png("rgb-transparent-colour.png", 7, 5, 8, 2, levels(3), (b"tRNS", struct.pack(">3H", 1, 2, 3)))
png("gray-transparent-level.png", 7, 5, 8, 0, levels(1), (b"tRNS", struct.pack(">H", 7)))
palette = (b"PLTE", random.integers(0, 256, 24, np.uint8).tobytes())
indices = random.integers(0, 8, 35, np.uint8).tobytes()
png("palette-transparent.png", 7, 5, 8, 3, indices, palette, (b"tRNS", bytes([0, 255, 128, 0])))
png("gray-4.png", 6, 5, 4, 0, random.integers(0, 256, 15, np.uint8).tobytes())

rgb.quantize(16).save(out / "transparent.gif", transparency=3)
rgb.quantize(16).save(out / "still.gif", interlace=1)


def partial_gif(name, screen, offset, colours=4, **options):
    """A GIF whose frame is elsewhere on a larger or smaller canvas; Pillow writes none such."""
    small = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8)).quantize(colours)
    small.save(out / name, **options)
    data = bytearray((out / name).read_bytes())
    data[6:10] = struct.pack("<2H", *screen)
    position = 13 + (3 << ((data[10] & 7) + 1))
    while data[position] == 0x21:  # extensions
        position += 2
        while data[position]:
            position += data[position] + 1
        position += 1
    assert data[position] == 0x2C
    data[position + 1 : position + 5] = struct.pack("<2H", *offset)
    (out / name).write_bytes(data)


partial_gif("partial.gif", (9, 7), (3, 2))
partial_gif("partial-transparent.gif", (9, 7), (5, 4), transparency=2)
partial_gif("beyond.gif", (3, 2), (1, 1))
partial_gif("partial-five.gif", (6, 6), (0, 3), colours=5)
rgb.save(out / "animated.webp", save_all=True, append_images=[second], lossless=True)
rgba.save(out / "animated-alpha.webp", save_all=True, append_images=[second.convert("RGBA")], lossless=True, exact=True)

# JPEG: larger, smooth and with edges, for the transform and the chroma's upsampling to matter.
y, x = np.mgrid[0:37, 0:53]
waves = np.stack([128 + 100 * np.sin(x / 5 + c) * np.cos(y / 7 - c) for c in range(3)], -1)
waves[10:20, 15:40] = [250, 20, 60]
photo = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
    photo.save(out / f"photo-{name}.jpg", quality=85, subsampling=subsampling)
    photo.save(out / f"progressive-{name}.jpg", quality=60, subsampling=subsampling, progressive=True)
photo.save(out / "lossy.webp", quality=80)
photo.save(out / "restarts.jpg", quality=75, restart_marker_rows=1)
photo.convert("L").save(out / "gray.jpg", quality=80)
photo.convert("CMYK").save(out / "cmyk.jpg", quality=90)
photo.save(out / "keep-rgb.jpg", quality=90, keep_rgb=True)
xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
photo.save(out / "xmp-orientation.jpg", quality=90, xmp=xmp)
rgb.save(out / "xmp-orientation.webp", lossless=True, xmp=xmp)

for path in sorted(out.iterdir()):
    if not path.name.endswith(".rgb.png"):
        load_image(str(path)).convert("RGB").save(out / f"{path.name}.rgb.png")

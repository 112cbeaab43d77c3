"""Orientations as cameras and programs store them, BMP files of 16 bits, and what transformers reads from them.

    python make_more_formats.py ../formats

As in make_formats.py, each file has a neighbour `NAME.rgb.png` with the pixels after `load_image`.
"""

import pathlib
import struct
import sys
import zlib

import numpy as np
from PIL import Image
from transformers.image_utils import load_image

out = pathlib.Path(sys.argv[1])
random = np.random.default_rng(1)
pixels = random.integers(0, 256, (5, 7, 3), np.uint8)
image = Image.fromarray(pixels)
FORMATS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
written = []


def tiff(kind, count=1, order="<", value=6):
    """EXIF data of one entry: the orientation as a type of TIFF, as often as `count` says."""
    numbers = (value, 1) if len(FORMATS[kind]) == 2 else (value,)
    data = struct.pack(order + FORMATS[kind], *numbers) * count
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entry = struct.pack(order + "HHI", 0x0112, kind, count)
    behind = struct.pack(order + "I", 8 + 2 + 12 + 4) if len(data) > 4 else data.ljust(4, b"\0")
    return header + struct.pack(order + "H", 1) + entry + behind + bytes(4) + (data if len(data) > 4 else b"")


def save(name, *args, **options):
    image.save(out / name, *args, **options)
    written.append(name)


def png(name, *chunks, behind=()):
    """A PNG with chunks before and behind its pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)), *chunks, (b"IDAT", zlib.compress(lines)), *behind, (b"IEND", b"")]
    (out / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    written.append(name)


for kind in FORMATS:
    png(f"exif-type-{kind}.png", (b"eXIf", tiff(kind)))
for order, name in [("<", "little"), (">", "big")]:
    save(f"exif-long-{name}.jpg", quality=95, exif=b"Exif\0\0" + tiff(4, order=order))
    save(f"exif-two-{name}.jpg", quality=95, exif=b"Exif\0\0" + tiff(3, count=3, order=order))
png("exif-large.png", (b"eXIf", tiff(4, value=300)))
png("exif-half.png", (b"eXIf", tiff(11, value=6.5)))
save("exif-prefix.webp", lossless=True, exif=b"Exif\0\0" + tiff(3))
png("exif-prefix.png", (b"eXIf", b"Exif\0\0" + tiff(3)))
png("exif-behind.png", behind=[(b"eXIf", tiff(3))])

data = b"Exif\0\0" + tiff(3)
digits = data.hex()
profile = f"\nexif\n{len(data):8}\n".encode() + b"\n".join(digits[i : i + 72].encode() for i in range(0, len(digits), 72)) + b"\n"
png("profile-text.png", (b"tEXt", b"Raw profile type exif\0" + profile))
png("profile-compressed.png", (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)))
png("profile-international.png", (b"iTXt", b"Raw profile type exif\0\1\0\0\0" + zlib.compress(profile)))
png("profile-app1.png", (b"tEXt", b"Raw profile type APP1\0" + profile))
png("profile-and-exif.png", (b"eXIf", tiff(3, value=3)), (b"tEXt", b"Raw profile type exif\0" + profile))
xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
png("xmp-behind.png", behind=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)])
png("xmp-and-exif.png", (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), (b"eXIf", tiff(3)))



def bmp(name, *masks):
    """All 5-bit and 6-bit values of each channel, in 16 bits for a pixel."""
    values = np.arange(64, dtype=np.uint32)
    red, green, blue = masks or (0x7C00, 0x03E0, 0x001F)
    place = lambda mask: values * (mask & -mask) & mask
    rows = np.stack([place(red), place(green), place(blue), random.integers(0, 0x10000, 64)]).astype("<u2")
    fields = struct.pack("<III", *masks) if masks else b""
    start = 14 + 40 + len(fields)
    header = struct.pack("<IiiHHIIiiII", 40, 64, 4, 1, 16, 3 if masks else 0, rows.nbytes, 0, 0, 0, 0)
    (out / name).write_bytes(b"BM" + struct.pack("<IHHI", start + rows.nbytes, 0, 0, start) + header + fields + rows.tobytes())
    written.append(name)


bmp("bits-16.bmp")
bmp("bits-555.bmp", 0x7C00, 0x03E0, 0x001F)
bmp("bits-565.bmp", 0xF800, 0x07E0, 0x001F)

for name in written:
    load_image(str(out / name)).save(out / f"{name}.rgb.png")

"""Image placeholders for every grid, with and without thumbnail and special tokens.

    python make_placeholders.py ../preprocess/placeholders.json

The grids are forced with `min_tiles = max_tiles`; `<image>*N` stands for N placeholders.
"""

import itertools
import json
import re
import sys
from types import SimpleNamespace

from transformers import Lfm2VlProcessor

processor = SimpleNamespace(image_token="<image>", image_start_token="<|image_start|>", image_end_token="<|image_end|>", image_thumbnail_token="<|img_thumbnail|>")
build = Lfm2VlProcessor._build_image_tokens
shorten = lambda text: re.sub(r"(?:<image>)+", lambda m: f"<image>*{len(m.group()) // 7}", text)
rows = []
for rows_, cols in itertools.product(range(1, 11), repeat=2):
    if rows_ * cols > 10:
        continue
    for thumbnail, special in itertools.product((True, False), repeat=2):
        text = build(processor, rows_, cols, 256, 64 + rows_, thumbnail, special)
        rows.append({"rows": rows_, "cols": cols, "tokens_per_tile": 256, "tokens_for_image": 64 + rows_, "thumbnail": thumbnail, "special": special, "text": shorten(text)})
with open(sys.argv[1], "w") as file:
    file.write("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
print(len(rows))

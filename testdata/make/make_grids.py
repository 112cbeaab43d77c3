"""Tile grids where several are equally near, for many numbers of tiles.

    python make_grids.py ../preprocess/grids.csv

Of equally near grids the last one counts, in the order of a sorted Python set; so the order in
which Python walks over a set decides.
"""

import random
import sys

from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

random.seed(0)
processor = Lfm2VlImageProcessor()
TIES = [(2, 1), (1, 2), (4, 1), (1, 4), (3, 2), (5, 2), (13, 5), (15, 4), (5, 4), (25, 8), (8, 25), (10, 3)]
with open(sys.argv[1], "w") as file:
    file.write("min_tiles,max_tiles,width,height,rows,cols\n")
    for low in range(1, 21):
        for high in range(low, 21):
            if high == 1:
                continue
            for _ in range(6):
                across, down = random.choice(TIES)
                scale = random.randint(40, 400)
                # Halfway between the ratios of two grids, as often as not.
                width, height = random.choice([(across * scale, down * scale), (random.randint(700, 3000), random.randint(700, 3000))])
                cols, rows = processor._get_grid_layout(height, width, low, high, 512)[:2]
                file.write(f"{low},{high},{width},{height},{rows},{cols}\n")
            for n in range(low, high + 1):  # exactly between two grids of n tiles
                pairs = [(w, n // w) for w in range(1, n + 1) if n % w == 0]
                (a, b), (c, d) = random.choice(pairs), random.choice(pairs)
                width, height = (a * d + c * b) * 60, 2 * b * d * 60
                cols, rows = processor._get_grid_layout(height, width, low, high, 512)[:2]
                file.write(f"{low},{high},{width},{height},{rows},{cols}\n")

"""Made-up images, which a test in any language can make again.

Byte i of the pixels (row by row, RGB) is the top byte of SplitMix64's output number i + 1 from the
state `seed`.
"""

import numpy as np


def noise(count, seed):
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8)

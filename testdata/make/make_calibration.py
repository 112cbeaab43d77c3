"""Images and questions to calibrate quantizers on: of the task that tiny-shapes was trained on, and
neither its training data nor its samples.

    python make_calibration.py ../tiny-shapes/calibration
"""
import argparse
import io
import json
import random
from pathlib import Path

import shapes_task as task

FIRST_SEED = 970_000_000
IMAGES, QUESTIONS, LARGEST = 24, 4, 12_000

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
folder = parser.parse_args().folder
folder.mkdir(exist_ok=True)
entries, seed = [], FIRST_SEED
while len(entries) < IMAGES * QUESTIONS:
    seed += 1
    rng = random.Random(seed)
    scene = task.Scene(rng)
    buffer = io.BytesIO()
    scene.image.save(buffer, "PNG", optimize=True)
    questions = task.questions(scene, rng)
    if len(buffer.getvalue()) > LARGEST or len(questions) < QUESTIONS:
        continue
    name = f"{len(entries) // QUESTIONS:02}.png"
    (folder / name).write_bytes(buffer.getvalue())
    for kind, question, answer in rng.sample(questions, QUESTIONS):
        entries.append({"images": [name], "prompt": question, "answer": answer})
for sentence in ["Tell me a story.", "What is your name?", "Can you see pictures?"]:
    entries.append({"images": [], "prompt": sentence})
(folder / "samples.json").write_text(json.dumps(entries, indent=1) + "\n")

"""Every sample question about every image, with the answers that the float32 model gives: most are
questions that it is less sure about than those of the samples.

    python3 make_questions.py SAMPLES.json IMAGES_DIR FP32_FOLDER OUT.json --program LFM2VL
"""

import argparse
import json
import pathlib
import subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ["samples", "images", "folder", "out"]:
    parser.add_argument(name, type=pathlib.Path)
parser.add_argument("--program", required=True)
args = parser.parse_args()

samples = json.loads(args.samples.read_text())
images = sorted({tuple(sample["images"]) for sample in samples})
questions = {(files, s["prompt"], s.get("system")) for s in samples for files in images if len(files) == len(s["images"])}
answered = []
for files, prompt, system in sorted(questions, key=str):
    command = [args.program, "run", args.folder, "--precision", "fp32", "--prompt", prompt]
    command += [argument for file in files for argument in ("--image", args.images / file)]
    command += ["--system", system] if system else []
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    answered.append({"images": files, "prompt": prompt, "answer": answer, **({"system": system} if system else {})})
args.out.write_text(json.dumps(answered, indent=1))

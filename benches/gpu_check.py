"""Whether a model gives the same answers on a GPU as on the CPU, and how fast it is there.

    python3 gpu_check.py [--provider cuda] [--samples N] [--repeat N]

Runs in the folder that `cargo xtask gpu-check` makes, and needs nothing else; transformers (bfloat16) is
measured beside it where it is installed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--provider", default="cuda")
parser.add_argument("--samples", type=int, default=117)
parser.add_argument("--repeat", type=int, default=5)
args = parser.parse_args()
here = pathlib.Path(__file__).resolve().parent
(library,) = here.glob("lib/libonnxruntime.so*")
environment = os.environ | {"ORT_DYLIB_PATH": str(library)}


def lfm2vl(*arguments):
    command = [here / "lfm2vl", *arguments, "--json"]
    process = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr)
    return json.loads(process.stdout)


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no NVIDIA GPU"


def parity(precision):
    model, samples = here / "tiny-shapes", here / "samples"
    for graph in lfm2vl("inspect", model, "--precision", precision, "--provider", args.provider)["graphs"]:
        shares = [f"{assigned['nodes']} on {assigned['provider']}" for assigned in graph["assignments"]]
        print(f"  {graph['graph']}: nodes {', '.join(shares)}")
    questions = json.loads((samples / "samples.json").read_text())[: args.samples]
    same = 0
    for question in questions:
        prompt = ["--prompt", question["prompt"], "--precision", precision]
        for image in question["images"]:
            prompt += ["--image", samples / image]
        tokens = [lfm2vl("run", model, *prompt, "--provider", p)["token_ids"] for p in (args.provider, "cpu")]
        same += tokens[0] == tokens[1]
    print(f"  {same} of {len(questions)} answers have the CPU's tokens")


SCENARIOS = [
    ("vision, 512x512 tile, ms", "vision_ms", ["--image", "512x512.png", "--prompt-tokens", 20, "--new-tokens", 1]),
    ("prefill of 512, tokens/s", "prefill_tokens_per_second", ["--prompt-tokens", 512, "--new-tokens", 1]),
    ("decode after 128, tokens/s", "decode_tokens_per_second", ["--prompt-tokens", 128, "--new-tokens", 128]),
    ("photo: first token, ms", "time_to_first_token_ms", ["--image", "1280x720.jpg", "--prompt-tokens", 20]),
]
BATCHES = [8, 32]


def scenario(arguments):
    return [str(here / "photos" / a) if str(a).endswith((".png", ".jpg")) else str(a) for a in arguments]


def speed(precision):
    bench = ["bench", here / "450m", "--precision", precision, "--provider", args.provider, "--repeat", args.repeat]
    for name, key, arguments in SCENARIOS:
        print(f"  {name:<28} {lfm2vl(*bench, *scenario(arguments))[key]:>10.1f}")
    for rows in BATCHES:
        decode = ["--prompt-tokens", 128, "--new-tokens", 128, "--batch", rows]
        print(f"  {f'batch of {rows}, tokens/s':<28} {lfm2vl(*bench, *decode)['decode_tokens_per_second']:>10.1f}")


def transformers():
    script = [sys.executable, here / "transformers_model.py", here / "checkpoint", "--dtype", "bfloat16"]
    for name, key, arguments in SCENARIOS:
        command = [*script, "--device", "cuda", "--repeat", args.repeat, *scenario(arguments)]
        process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        print(f"  {name:<28} {json.loads(process.stdout)[key]:>10.1f}")


print(device())
for precision in ("fp16", "q4f16"):
    print(f"{precision} on {args.provider}, the sample model")
    parity(precision)
    print(f"{precision} on {args.provider}, the 450M shape")
    speed(precision)
if args.provider == "cuda" and importlib.util.find_spec("transformers"):
    print("transformers, bfloat16 on cuda, the 450M shape")
    transformers()
else:
    print("transformers is left out: it is not installed, or the provider is not cuda")

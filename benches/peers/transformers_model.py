"""transformers: where the time of an answer goes, as one line of JSON.

    python3 transformers_model.py CHECKPOINT [--image FILE] [--prompt-tokens N] [--new-tokens N] [--batch N]
        [--repeat N] [--threads N] [--cold] [--dtype float32|bfloat16] [--device cpu|cuda] [--compile]
        [--scenarios FILE]

The keys, and the scenarios of which each has a line, are those of `lfm2vl bench`. Needs transformers, torch, torchvision and pillow.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.image_utils import load_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint")
parser.add_argument("--image")
parser.add_argument("--prompt-tokens", type=int, default=512)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--batch", type=int, default=1, help="conversations that are decoded together")
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--cold", action="store_true", help="without a run before the first one")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--compile", action="store_true", help="with torch.compile, after runs that are not timed")
parser.add_argument("--scenarios", type=pathlib.Path, help="a JSON list of other images, prompt_tokens, new_tokens and batches")
args = parser.parse_args()

torch.set_num_threads(args.threads)
start = time.perf_counter()
dtype = getattr(torch, args.dtype)
model = AutoModelForImageTextToText.from_pretrained(args.checkpoint, dtype=dtype).eval().to(args.device)
if args.compile:
    model.compile(dynamic=True)
processor = AutoProcessor.from_pretrained(args.checkpoint)
load = time.perf_counter() - start


def filler(tokens):
    words = "The image shows a red square and a blue circle. "
    each = len(processor.tokenizer.encode(words, add_special_tokens=False))
    return words * -(-tokens // each)


def now():
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(scenario, prompt):
    times = {}
    start = now()
    content = [{"type": "image", "image": load_image(scenario["image"])}] if scenario["image"] else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs = inputs.to(args.device)
    if scenario["batch"] > 1:
        assert not scenario["image"], "only text is decoded together"
        inputs = {name: rows.repeat(scenario["batch"], 1) for name, rows in inputs.items()}
    if scenario["image"]:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    times["preprocess_ms"] = now() - start

    prompt_start = now()
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    first = now()
    for _ in range(scenario["new_tokens"] - 1):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
    end = now()
    times["time_to_first_token_ms"] = first - start
    times["total_ms"] = end - start
    if scenario["new_tokens"] > 1:
        times["decode"] = (end - first) / (scenario["new_tokens"] - 1) / scenario["batch"]
    if scenario["image"]:
        names = ["pixel_values", "spatial_shapes", "pixel_attention_mask"]
        vision = now()
        model.get_image_features(**{name: inputs[name] for name in names})
        times["vision_ms"] = now() - vision
    else:
        times["prefill"] = (first - prompt_start) / inputs["input_ids"].shape[1]
    return times


def report(scenario):
    prompt = filler(scenario["prompt_tokens"])
    if not args.cold:
        # What is compiled is so for each kind of run.
        for warm_up in [prompt] * 2 if args.compile else ["Hello"]:
            measure(scenario, warm_up)
    runs = [measure(scenario, prompt) for _ in range(args.repeat)]
    figures = {"load_ms": 1e3 * load}
    for key in runs[0]:
        median = statistics.median(run[key] for run in runs)
        if key.endswith("_ms"):
            figures[key] = 1e3 * median
        else:
            figures[f"{key}_tokens_per_second"] = 1 / median
    return figures


default = {name: getattr(args, name) for name in ("image", "prompt_tokens", "new_tokens", "batch")}
with torch.no_grad():
    for scenario in json.loads(args.scenarios.read_text()) if args.scenarios else [{}]:
        print(json.dumps(report({**default, **scenario})), flush=True)

"""Would folding outliers out of the inputs help 8-bit inputs with one scale (`activations: tensor`)?

    python3 smoothing.py CHECKPOINT SAMPLES OUT [--alpha 0.5]

Writes CHECKPOINT to OUT as the same function with smaller outliers: each norm is divided by, and the linear
layers that read it are multiplied by, SmoothQuant's factors max|x|^alpha / max|w|^(1-alpha) (Xiao et al.,
2023), where x is what the layers are given on SAMPLES, a folder with a samples.json. Export CHECKPOINT and OUT
with the same recipe and `--report`, and compare. Prints how far the largest input of each norm is from the
median one. Needs torch, transformers, pillow.
"""

import argparse
import json
import pathlib
import shutil

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

# Norms of a layer, and who reads them.
READERS = [
    ("layer_norm1", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("layer_norm2", ["mlp.fc1"]),
    ("operator_norm", ["conv.in_proj"]),
    ("operator_norm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("ffn_norm", ["feed_forward.w1", "feed_forward.w3"]),
]

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=pathlib.Path)
parser.add_argument("samples", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--alpha", type=float, default=0.5)
arguments = parser.parse_args()

model = AutoModelForImageTextToText.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(arguments.checkpoint)

modules = dict(model.named_modules())
groups = {}
for name, layer in modules.items():
    for norm, readers in READERS:
        if hasattr(layer, norm) and all(f"{name}.{reader}" in modules for reader in readers):
            groups[f"{name}.{norm}"] = [modules[f"{name}.{reader}"] for reader in readers]

largest = {}


def watch(name):
    def hook(_, inputs):
        seen = inputs[0].flatten(0, -2).abs().amax(0)
        largest[name] = torch.maximum(largest.get(name, seen), seen)

    return hook


for name, readers in groups.items():
    readers[0].register_forward_pre_hook(watch(name))
for sample in json.loads((arguments.samples / "samples.json").read_text()):
    images = [{"type": "image", "image": Image.open(arguments.samples / i)} for i in sample.get("images", [])]
    messages = [{"role": "user", "content": [*images, {"type": "text", "text": sample["prompt"]}]}]
    if "answer" in sample:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": sample["answer"]}]})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        model(**inputs)

with torch.no_grad():
    for name, readers in groups.items():
        weights = torch.stack([reader.weight.abs().amax(0) for reader in readers]).amax(0) + 1e-6
        inputs = largest[name] + 1e-6
        factors = inputs**arguments.alpha / weights ** (1 - arguments.alpha)
        for parameter in modules[name].parameters():
            parameter /= factors
        for reader in readers:
            reader.weight *= factors
        print(f"{name}: largest input {float(inputs.max() / inputs.median()):.1f} times the median")

shutil.copytree(arguments.checkpoint, arguments.out, ignore=shutil.ignore_patterns("*.safetensors*"))
model.save_pretrained(arguments.out)

"""Greedy tokens from an exported folder in onnxruntime-genai, which reads genai_config.json.

    python generate_genai.py FOLDER TENSORS.safetensors STEPS [--precision P]
    python generate_genai.py FOLDER PROMPT STEPS [--image FILE]... [--precision P]

TENSORS is what `lfm2vl preprocess --tensors` writes; tiled images can only be given this way. With a
PROMPT, genai's own image processor, chat template and tokenizer make the inputs. P replaces the
precision that genai_config.json names. Prints the new token ids as JSON, without the end token.
"""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime_genai as genai
from safetensors.numpy import load_file

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("source")
parser.add_argument("steps", type=int)
parser.add_argument("--image", action="append", default=[])
parser.add_argument("--precision", choices=SUFFIXES)
args = parser.parse_args()


def given_tensors(path):
    tensors = load_file(path)
    ids = tensors.pop("input_ids")
    config = json.loads((args.folder / "config.json").read_text())
    image_tokens = (ids == config.get("image_token_id", 396)).sum()
    inputs = genai.NamedTensors()
    inputs["input_ids"] = ids.astype(np.int32)
    inputs["num_image_tokens"] = np.array([image_tokens], np.int64)
    for name, tensor in tensors.items():
        inputs[name] = tensor
    return inputs


def own_tensors(model, prompt, images):
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    messages = json.dumps([{"role": "user", "content": content}])
    text = genai.Tokenizer(model).apply_chat_template(messages, add_generation_prompt=True)
    opened = genai.Images.open(*images) if images else None
    return model.create_multimodal_processor()(text, images=opened)


genai.disable_telemetry_events()
config = genai.Config(str(args.folder))
if args.precision:
    suffix = SUFFIXES[args.precision]
    names = {"decoder": "decoder_genai", "embedding": "embeddings", "vision": "vision_encoder"}
    files = {part: {"filename": f"onnx/{name}{suffix}.onnx"} for part, name in names.items()}
    config.overlay(json.dumps({"model": files}))
model = genai.Model(config)
if args.source.endswith(".safetensors"):
    inputs = given_tensors(args.source)
else:
    inputs = own_tensors(model, args.source, args.image)

params = genai.GeneratorParams(model)
params.set_search_options(do_sample=False, repetition_penalty=1.0)
generator = genai.Generator(model, params)
generator.set_inputs(inputs)
tokens, end_tokens = [], genai.Tokenizer(model).eos_token_ids
while len(tokens) < args.steps:
    generator.generate_next_token()
    token = int(generator.get_next_tokens()[0])
    if token in end_tokens:
        break
    tokens.append(token)
print(json.dumps(tokens))

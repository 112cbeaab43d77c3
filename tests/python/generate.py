"""Greedy tokens from an exported folder in plain onnxruntime, knowing only the contract.

    python generate.py FOLDER TENSORS.safetensors STEPS

TENSORS is what `lfm2vl preprocess --tensors` writes. Prints the token ids as JSON.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

folder, tensors, steps = pathlib.Path(sys.argv[1]), load_file(sys.argv[2]), int(sys.argv[3])
image_token_id = json.loads((folder / "config.json").read_text()).get("image_token_id", 396)
load = lambda name: onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx")
embed_tokens, decoder = load("embed_tokens"), load("decoder_model_merged")

embeds = embed_tokens.run(["inputs_embeds"], {"input_ids": tensors["input_ids"]})[0]
if "pixel_values" in tensors:
    vision = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    features = load("vision_encoder").run(["image_features"], {n: tensors[n] for n in vision})[0]
    embeds[tensors["input_ids"] == image_token_id] = features

sizes = {"batch": 1, "past_sequence": 0}
pasts = [i for i in decoder.get_inputs() if i.name.startswith("past")]
state = {i.name: np.zeros([sizes.get(d, d) for d in i.shape], np.float32) for i in pasts}
presents = {n: n.replace("past_key_values", "present").replace("past_conv", "present_conv") for n in state}
tokens, total = [], 0
for _ in range(steps):
    total += embeds.shape[1]
    inputs = {"inputs_embeds": embeds, "attention_mask": np.ones((1, total), np.int64), **state}
    logits, *new_state = decoder.run(["logits", *presents.values()], inputs)
    state = dict(zip(presents, new_state))
    tokens.append(int(logits[0, -1].argmax()))
    embeds = embed_tokens.run(None, {"input_ids": np.array([[tokens[-1]]])})[0]
print(json.dumps(tokens))

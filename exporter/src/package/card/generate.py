"""Answers a prompt with plain onnxruntime; greedy, with numpy only.

    pip install onnxruntime safetensors
    python generate.py FOLDER TENSORS.safetensors MAX_NEW_TOKENS [SUFFIX]

FOLDER is the exported folder. TENSORS has `input_ids` and, for images, `pixel_values`,
`pixel_attention_mask` and `spatial_shapes`: what `lfm2vl preprocess --tensors` writes, or the
AutoProcessor of transformers returns. SUFFIX picks the precision: "" or _fp16, _quantized, _q4,
_q4f16. Prints the new token ids as JSON; a tokenizer turns them into text.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

folder, tensors, steps = pathlib.Path(sys.argv[1]), load_file(sys.argv[2]), int(sys.argv[3])
suffix = sys.argv[4] if len(sys.argv) > 4 else ""
read = lambda name: json.loads((folder / name).read_text())
load = lambda name: onnxruntime.InferenceSession(folder / "onnx" / f"{name}{suffix}.onnx")
end_tokens = np.atleast_1d(read("generation_config.json")["eos_token_id"])
embed_tokens, decoder = load("embed_tokens"), load("decoder_model_merged")

embeds = embed_tokens.run(["inputs_embeds"], {"input_ids": tensors["input_ids"]})[0]
if "pixel_values" in tensors:
    vision = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    features = load("vision_encoder").run(["image_features"], {n: tensors[n] for n in vision})[0]
    embeds[tensors["input_ids"] == read("config.json")["image_token_id"]] = features

# The state before the first token: zeros for the convolutions, nothing for the attention.
sizes = {"batch_size": 1, "past_sequence": 0}
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
pasts = [i for i in decoder.get_inputs() if i.name.startswith("past")]
state = {i.name: np.zeros([sizes.get(d, d) for d in i.shape], types[i.type]) for i in pasts}
presents = {n: n.replace("past_key_values", "present").replace("past_conv", "present_conv") for n in state}

tokens, total = [], 0
while len(tokens) < steps:
    total += embeds.shape[1]
    inputs = {"inputs_embeds": embeds, "attention_mask": np.ones((1, total), np.int64), **state}
    logits, *new_state = decoder.run(["logits", *presents.values()], inputs)
    state = dict(zip(presents, new_state))
    token = int(logits[0, -1].argmax())
    if token in end_tokens:
        break
    tokens.append(token)
    embeds = embed_tokens.run(None, {"input_ids": np.array([[token]])})[0]
print(json.dumps(tokens))

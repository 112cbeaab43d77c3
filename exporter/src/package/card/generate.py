"""Answers a question, about images if you like, with plain ONNX Runtime: greedily, on the CPU.

    pip install onnxruntime tokenizers pillow
    python generate.py FOLDER QUESTION [IMAGE...]

FOLDER is the one with tokenizer.json. Prints the new tokens' ids, then their text.

Images may have any size: before you decode those of strangers, refuse absurd sizes (say, over 50
megapixels); Image.open reads a header alone. Names of special tokens in QUESTION, such as
<|im_end|>, mean these tokens.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

SUFFIX = ""  # of the precision's files in onnx/: "" is fp32, "_q4" has weights of 4 bits
MAX_NEW_TOKENS = 64
PROMPT = "<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def load(name):
    path = folder / "onnx" / f"{name}.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


folder, question, images = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
image_token = tokenizer.token_to_id("<image>")
generation_config = json.loads((folder / "generation_config.json").read_text())
end_tokens = np.atleast_1d(generation_config["eos_token_id"])
image_processor, vision_encoder = load("image_processor"), load(f"vision_encoder{SUFFIX}")
embeddings, decoder = load(f"embeddings{SUFFIX}"), load(f"decoder_model_merged{SUFFIX}")

# What takes the place of each <image> in the prompt, and the features of all images.
no_features = np.zeros((0, vision_encoder.get_outputs()[0].shape[1]), np.float32)
places, features = [], [no_features]
for file in images:
    pixels = np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    views = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
    ids, *values = image_processor.run(["image_token_ids", *views], {"pixels": pixels})
    places.append(ids)
    features += vision_encoder.run(["image_features"], dict(zip(views, values)))

prompt = PROMPT.replace("{content}", "<image>" * len(images) + question)
input_ids, remaining = [], iter(places)
for token in tokenizer.encode(prompt, add_special_tokens=False).ids:
    input_ids.extend(next(remaining) if token == image_token else [token])

# The decoder's state before the first token: zeros for the convolutions, nothing for the attention.
sizes = {"batch_size": 1, "past_sequence": 0}
types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
pasts = [i for i in decoder.get_inputs() if i.name.startswith("past")]
state = {i.name: np.zeros([sizes.get(n, n) for n in i.shape], types[i.type]) for i in pasts}
presents = [n.replace("past_key_values", "present").replace("past_conv", "present_conv") for n in state]

tokens, total, image_features = [], 0, np.concatenate(features)
while len(tokens) < MAX_NEW_TOKENS:
    ids = {"input_ids": np.array([input_ids], np.int64), "image_features": image_features}
    (inputs_embeds,) = embeddings.run(["inputs_embeds"], ids)
    total += len(input_ids)
    inputs = {"inputs_embeds": inputs_embeds, "attention_mask": np.ones((1, total), np.int64), **state}
    if "seqlens_k" in [i.name for i in decoder.get_inputs()]:  # as CUDA's operators want it
        del inputs["attention_mask"]
        inputs["seqlens_k"] = np.array([total - 1], np.int32)
        inputs["total_sequence_length"] = np.array(total, np.int32)
    if "input_ids" in [i.name for i in decoder.get_inputs()]:  # it could look up tokens, but is given embeddings
        inputs["input_ids"] = np.full((1, len(input_ids)), -1)
    logits, *values = decoder.run(["logits", *presents], inputs)
    state = dict(zip(state, values))
    token = int(logits[0, -1].argmax())
    if token in end_tokens:
        break
    tokens.append(token)
    input_ids, image_features = [token], no_features

print(json.dumps(tokens))
print(tokenizer.decode(tokens, skip_special_tokens=True))

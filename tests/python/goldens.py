"""Runs exported folders in plain onnxruntime on the goldens of transformers, and fails past the bars.

    python goldens.py TESTDATA FOLDER=GOLDEN.safetensors...

Image features, logits and states may differ by 2e-5, about ten times what is measured (absolute, scaled by
the golden's largest magnitude where that exceeds 1); the 16 greedy tokens are to be identical.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
import static_folder
from safetensors.numpy import load_file

BAR = 2e-5


def sessions(folder):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    paths = (folder / "onnx").glob("*.onnx")
    return {p.stem: onnxruntime.InferenceSession(p, options) for p in paths}


def error(ours, golden):
    return float(np.abs(ours - golden).max() / max(1.0, np.abs(golden).max()))


def image_features(graphs, golden):
    mask = golden["pixel_attention_mask"].astype(np.int64)
    pixels = np.zeros((*mask.shape, golden["pixels_uint8"].shape[1]), np.float32)
    pixels[mask == 1] = ((golden["pixels_uint8"] / 255).astype(np.float32) - 0.5) / 0.5
    shapes = golden["spatial_shapes"]
    inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    if "vision_encoder" in graphs and isinstance(graphs["vision_encoder"].get_inputs()[0].shape[0], int):
        return static_folder.image_features(graphs["vision_encoder"], pixels, mask, shapes)
    if "vision_encoder" in graphs:
        return graphs["vision_encoder"].run(["image_features"], inputs)[0]
    hidden = graphs["vision_tower"].run(["last_hidden_state"], inputs)[0]
    inputs = {"last_hidden_state": hidden, "spatial_shapes": shapes}
    return graphs["projector"].run(["image_features"], inputs)[0]


class Decoder:
    """The rows of a batch, with their state."""

    def __init__(self, graph, rows):
        self.graph, self.outputs = graph, [o.name for o in graph.get_outputs()]
        sizes = {"batch_size": rows, "past_sequence": 0}
        self.state = {
            i.name: np.zeros([sizes.get(d, d) for d in i.shape], np.float32)
            for i in graph.get_inputs()
            if i.name.startswith("past")
        }

    def run(self, embeds, mask):
        inputs = {"inputs_embeds": embeds, **self.state}
        if any(i.name == "seqlens_k" for i in self.graph.get_inputs()):
            inputs["seqlens_k"] = (mask.sum(1) - 1).astype(np.int32)
            inputs["total_sequence_length"] = np.array(mask.shape[1], np.int32)
            if any(i.name == "input_ids" for i in self.graph.get_inputs()):
                inputs["input_ids"] = np.full(embeds.shape[:2], -1)
        else:
            inputs["attention_mask"] = mask
        results = dict(zip(self.outputs, self.graph.run(self.outputs, inputs)))
        for name in self.state:
            present = name.replace("past_key_values", "present").replace("past_conv", "present_conv")
            self.state[name] = results[present]
        return results["logits"]


def check(folder, golden):
    graphs, config = sessions(folder), json.loads((folder / "config.json").read_text())
    errors = {"features": error(image_features(graphs, golden), golden["image_features"])}
    embed, decoder = graphs["embed_tokens"], graphs["decoder_model_merged"]
    ids, mask = golden["input_ids"], golden["attention_mask"]
    image_token = config.get("image_token_id", config.get("image_token_index", 396))
    embeds = embed.run(None, {"input_ids": ids})[0]
    embeds[ids == image_token] = golden["image_features"]

    decoder = static_folder.Decoder(graphs) if "decoder_prefill" in graphs else Decoder(decoder, len(ids))
    logits = decoder.run(embeds, mask)
    state = decoder.state
    every = logits.shape[1] > 1
    errors["logits"] = error(
        logits[:, golden["logits_positions"]] if every else logits, golden["logits"][:, slice(None) if every else slice(-1, None)]
    )
    errors["states"] = 0.0
    for name, expected in golden.items():
        if name.startswith("cache."):
            _, layer, kind = name.split(".")
            ours = state[f"past_conv.{layer}" if kind == "conv" else f"past_key_values.{layer}.{kind}"]
            if kind == "conv" and ours.shape[2] == expected.shape[1]:  # as rows, without the oldest
                expected = expected[:, :, 1:].transpose(0, 2, 1)
            if kind != "conv":  # padding holds nothing that anyone reads
                valid = mask == 1
                ours, expected = (a.transpose(0, 2, 1, 3)[valid] for a in (ours, expected))
            errors["states"] = max(errors["states"], error(ours, expected))
    greedy, errors["steps"] = [], 0.0
    for step in range(golden["greedy_ids"].shape[1]):
        greedy.append(logits[:, -1].argmax(-1))
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        logits = decoder.run(embed.run(None, {"input_ids": greedy[-1][:, None]})[0], mask)
        if "step_logits" in golden:
            errors["steps"] = max(errors["steps"], error(logits[:, -1], golden["step_logits"][:, step]))
    return errors, np.array_equal(np.array(greedy).T, golden["greedy_ids"])


failed, largest = False, {}
for pair in sys.argv[2:]:
    folder, name = pair.split("=")
    golden = load_file(pathlib.Path(sys.argv[1]) / name)
    errors, same = check(pathlib.Path(folder), golden)
    wrong = [key for key, value in errors.items() if not value <= BAR] + [[], ["greedy tokens"]][not same]
    failed |= bool(wrong)
    largest = {key: max(value, largest.get(key, 0.0)) for key, value in errors.items()}
    figures = "  ".join(f"{key} {value:.1e}" for key, value in errors.items())
    print(f"{pathlib.Path(folder).name:<28} {name:<44} {figures}  {'FAILED: ' + ', '.join(wrong) if wrong else 'ok'}")
print("largest:", "  ".join(f"{key} {value:.1e}" for key, value in largest.items()))
sys.exit(failed)

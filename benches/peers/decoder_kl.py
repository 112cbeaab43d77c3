"""How far decoders are from the float32 one: the next token's distribution over given answers.

    python3 decoder_kl.py FP32_FOLDER SAMPLES.json IMAGES_DIR [NAME=[kernels:]DECODER.onnx]...
                          [--program LFM2VL] [--kernels FOLDER]

FP32_FOLDER is an exported folder; its own float32 graphs make the embeddings, so that decoders alone are
compared. SAMPLES is a list of {"images", "prompt", "answer"} and perhaps "system". Each decoder is given the
prompt and then the answer, token by token with its caches; the positions that predict the answer's tokens,
its end token too, are counted. A decoder may have other names of caches, float16 inputs and position_ids.

Prompts are made by `lfm2vl preprocess`, found by --program or in PATH. `kernels:` runs a decoder with the package
onnxruntime-ep-lfm2vl, which is imported from --kernels if that is given. Needs numpy, onnxruntime, safetensors and
tokenizers.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime
from safetensors.numpy import load_file
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("samples", type=pathlib.Path)
parser.add_argument("images", type=pathlib.Path)
parser.add_argument("decoders", nargs="*", metavar="NAME=[kernels:]DECODER.onnx")
parser.add_argument("--program", default="lfm2vl")
parser.add_argument("--kernels", help="folder that has the package onnxruntime_ep_lfm2vl")
args = parser.parse_intermixed_args()

VISION_INPUTS = ["pixel_values", "pixel_attention_mask", "spatial_shapes"]
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


KERNELS = "kernels:"


def load(path):
    path = str(path)
    if not path.startswith(KERNELS):
        return onnxruntime.InferenceSession(path)
    sys.path[:0] = [args.kernels] if args.kernels else []
    import onnxruntime_ep_lfm2vl

    onnxruntime_ep_lfm2vl.register(onnxruntime)
    options = onnxruntime_ep_lfm2vl.session_options(onnxruntime)
    return onnxruntime.InferenceSession(path.removeprefix(KERNELS), options)


def cache_key(name):
    """Layer and kind of a cache, however named: `past_conv.0`, `past.0.conv`, `present.2.key`."""
    layer = int(re.search(r"\d+", name).group())
    return layer, "conv" if "conv" in name else name.rsplit(".", 1)[-1]


class Decoder:
    def __init__(self, path):
        self.session = load(path)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        if "inputs_embeds" not in self.inputs:
            raise SystemExit(f"{path} does not take inputs_embeds, so it cannot be given images")
        self.pasts = {cache_key(n): n for n in self.inputs if n.startswith("past")}
        names = [o.name for o in self.session.get_outputs()]
        self.presents = {cache_key(n): n for n in names if n.startswith("present")}
        assert self.pasts.keys() == self.presents.keys(), f"{path}: caches {self.pasts} {self.presents}"

    def start(self):
        """Batch 1 and no past; what has a number is kept. The head size of genai's caches has none."""
        self.length, self.state = 0, {}
        for key, name in self.pasts.items():
            sizes = [d if isinstance(d, int) else self.size(d) for d in self.inputs[name].shape]
            self.state[key] = np.zeros(sizes, TYPES[self.inputs[name].type])

    @staticmethod
    def size(dimension):
        return 1 if dimension.startswith("batch") else 0 if dimension.startswith("past") else head_size

    def next_logits(self, embeds):
        """Takes embeddings [1, sequence, hidden] and gives the logits [vocab] of the token after them."""
        before, self.length = self.length, self.length + embeds.shape[1]
        inputs = {
            "inputs_embeds": embeds.astype(TYPES[self.inputs["inputs_embeds"].type]),
            "attention_mask": np.ones((1, self.length), np.int64),
            "position_ids": np.arange(before, self.length)[None],
        }
        inputs = {name: value for name, value in inputs.items() if name in self.inputs}
        inputs.update({self.pasts[key]: value for key, value in self.state.items()})
        logits, *state = self.session.run(["logits", *self.presents.values()], inputs)
        self.state = dict(zip(self.presents, state))
        return logits[0, -1].astype(np.float64)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def preprocess(sample, out):
    command = [args.program, "preprocess", args.folder, "--prompt", sample["prompt"], "--tensors", out]
    for image in sample["images"]:
        command += ["--image", args.images / image]
    if sample.get("system"):
        command += ["--system", sample["system"]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(out)


def compare(expected, found):
    """Columns: divergence in nats, whether the first choice is the same, cosine. One row a position.

    The cosine is of logits about their mean: a shift of them all changes no probability.
    """
    p, q = log_softmax(expected), log_softmax(found)
    divergence = (np.exp(p) * (p - q)).sum(axis=-1)
    agree = expected.argmax(axis=-1) == found.argmax(axis=-1)
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (expected, found))
    cosine = (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.stack([divergence, agree, cosine], axis=1)


config = json.loads((args.folder / "config.json").read_text())
image_token, text = config.get("image_token_id", 396), config["text_config"]
head_size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]

graphs = args.folder / "onnx"
embed_tokens, vision_encoder = load(graphs / "embed_tokens.onnx"), load(graphs / "vision_encoder.onnx")
reference = Decoder(graphs / "decoder_model_merged.onnx")
decoders = {name: Decoder(path) for name, path in (d.split("=", 1) for d in args.decoders)}

end_tokens = json.loads((args.folder / "generation_config.json").read_text())["eos_token_id"]
end_token = end_tokens[0] if isinstance(end_tokens, list) else end_tokens
tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))


def embed(ids):
    return embed_tokens.run(["inputs_embeds"], {"input_ids": np.asarray(ids, np.int64).reshape(1, -1)})[0]


def steps(sample, out):
    """Embeddings of the prompt, then of each token of the answer but the end token."""
    tensors = preprocess(sample, out)
    prompt = embed(tensors["input_ids"])
    if "pixel_values" in tensors:
        inputs = {name: tensors[name] for name in VISION_INPUTS}
        prompt[tensors["input_ids"] == image_token] = vision_encoder.run(["image_features"], inputs)[0]
    answer = tokenizer.encode(sample["answer"], add_special_tokens=False).ids
    return [prompt, *(embed(token) for token in answer)], [*answer, end_token]


def answer_logits(decoder, given):
    decoder.start()
    return np.stack([decoder.next_logits(embeds) for embeds in given])


rows, right, losses = {name: [] for name in decoders}, [], []
with tempfile.TemporaryDirectory() as temporary:
    for sample in json.loads(args.samples.read_text()):
        given, answer = steps(sample, pathlib.Path(temporary) / "prompt.safetensors")
        expected = answer_logits(reference, given)
        right.extend(expected.argmax(axis=-1) == answer)
        losses.extend(-log_softmax(expected)[np.arange(len(answer)), answer])
        for name, decoder in decoders.items():
            rows[name].append(compare(expected, answer_logits(decoder, given)))

print(f"float32: {100 * np.mean(right):.1f} % of the answers' tokens first, {np.mean(losses):.4f} nats a token")
width = max(map(len, ["decoder", *decoders]))
print(f"{'decoder':{width}}    mean KL  +- error  max KL  same first %  mean cosine  least cosine  positions")
for name, parts in rows.items():
    table = np.concatenate(parts)
    divergence, agree, cosine = table.T
    mean = divergence.mean()
    # Positions of one answer go wrong together, so that the samples are what varies on its own.
    error = np.linalg.norm([(part[:, 0] - mean).sum() for part in parts]) / len(table)
    print(
        f"{name:{width}}  {mean:9.6f}  {error:8.6f}  {divergence.max():6.4f}  {100 * agree.mean():12.2f}"
        f"  {cosine.mean():11.5f}  {cosine.min():12.5f}  {len(table):9}"
    )

"""onnxruntime-genai's model builder on the text model of an LFM2-VL checkpoint.

    python3 genai_builder.py CHECKPOINT OUT [--block-size 32] [--symmetric] [--method default|rtn|k_quant]
                             [--head-bits 8] [--precision int4|fp16|fp32] [--provider cpu|cuda] [--input-ids]

Writes the text model alone as an `lfm2` checkpoint, then runs the builder on it. The decoder
takes `inputs_embeds`, so that prompts with images can be run, or `input_ids` with --input-ids. The builder's
own defaults are --symmetric --input-ids; tied embeddings are then read from the quantized head. Prints one
line of JSON: seconds (of the clock, and of all cores) and peak resident MB of the builder alone, megabytes of
the decoder, and how many of its products and weights have which bits, block size and zero points.

Needs onnxruntime-genai (0.18.0 was tried), onnx, onnx_ir, torch and transformers.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--block-size", type=int, default=32)
parser.add_argument("--symmetric", action="store_true")
parser.add_argument("--method", choices=["default", "rtn", "k_quant"], default="default")
parser.add_argument("--head-bits", type=int, choices=[4, 8], default=4)
parser.add_argument("--precision", choices=["int4", "fp16", "fp32"], default="int4")
parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--input-ids", action="store_true")
args = parser.parse_args()


def read_header(file):
    size = struct.unpack("<Q", file.read(8))[0]
    return json.loads(file.read(size)), 8 + size


def write_text_model(checkpoint, folder):
    """Copies the bytes as they are, so that no numbers of any type have to be understood."""
    tensors, parts = {}, []
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            header, start = read_header(file)
        for name, entry in header.items():
            if "language_model." in name:
                new_name = "model." + name.split("language_model.")[1]
            elif name.endswith("lm_head.weight"):
                new_name = "lm_head.weight"
            else:
                continue
            begin, end = entry["data_offsets"]
            at = sum(size for _, _, size in parts)
            tensors[new_name] = {**entry, "data_offsets": [at, at + end - begin]}
            parts.append((path, start + begin, end - begin))
    if not parts:
        sys.exit(f"{checkpoint} has no tensors named language_model.*")

    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for path, start, size in parts:
            with path.open("rb") as file:
                file.seek(start)
                while size:
                    size -= out.write(file.read(min(size, 1 << 20)))

    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"].update(
        architectures=["Lfm2ForCausalLM"],
        model_type="lfm2",
        dtype=config.get("dtype", "float32"),
        tie_word_embeddings="lm_head.weight" not in tensors,
    )
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, folder)


def run_builder(source, temporary):
    options = {
        "exclude_embeds": not args.input_ids,
        "block_size": args.block_size,
        "is_symmetric": args.symmetric,
        "accuracy_level": 4,
        "algo_config": args.method,
    }
    if args.head_bits == 8:
        options["matmul_mixed_precision"] = "last_matmul:int8"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", source, "-o", args.out, "-p", args.precision, "-e", args.provider, "-c", temporary / "cache"]
    command += ["--extra_options", *(f"{key}={str(value).lower()}" for key, value in options.items())]
    log = temporary / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        start = time.perf_counter()
        builder = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(builder.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{log.read_text()[-2000:]}\nthe builder failed with status {status}")
    return {
        "seconds": round(seconds, 2),
        "core_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),  # Linux counts in KiB
    }


def products(path):
    import onnx  # not before the builder runs: memory of the parent is counted as the child's

    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: tensor.dims for tensor in graph.initializer}
    nodes, weights = collections.Counter(), collections.Counter()
    for node in graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            kind = "{bits} bits, block {block_size}, accuracy level {accuracy_level}".format(**attributes)
            kind += ", zero points" if len(node.input) > 3 and node.input[3] else ""
            size = attributes["K"] * attributes["N"]
        elif node.op_type == "MatMul" and node.input[1] in sizes:
            kind, size = "float", math.prod(sizes[node.input[1]])
        else:
            continue
        kind = f"head: {kind}" if "lm_head" in node.name else kind
        nodes[kind] += 1
        weights[kind] += size
    return {kind: {"products": nodes[kind], "weights": weights[kind]} for kind in nodes}


with tempfile.TemporaryDirectory() as temporary:
    text_model = pathlib.Path(temporary) / "text"
    text_model.mkdir()
    write_text_model(args.checkpoint, text_model)
    result = run_builder(text_model, pathlib.Path(temporary))
size = sum(path.stat().st_size for path in args.out.glob("model.onnx*"))
result["decoder_mb"] = round(size / 1e6, 3)
print(json.dumps({**result, "products": products(args.out / "model.onnx")}))

"""onnxruntime-genai's model builder on the text model of an LFM2-VL checkpoint.

    python3 genai_builder.py CHECKPOINT OUT [--block-size 32] [--symmetric] [--method default|rtn|k_quant]
                             [--head-bits 8] [--precision int4|fp32] [--input-ids]

Writes the text model alone as an `lfm2` checkpoint, then runs the builder on it for the CPU. The decoder
takes `inputs_embeds`, so that prompts with images can be run, or with --input-ids (the builder's default)
has the embeddings inside, in float32. The quantizer's options are always passed; the builder's own default
is --symmetric. Prints one line of JSON: seconds and peak resident MB of the builder alone, megabytes of the
decoder, and the number of its matrix products (and their weights) by bits, block size and zero points.

Needs onnxruntime-genai, onnx, onnx_ir, torch and transformers. Both 0.18.0 and its quantizer are meant.
"""

import argparse
import collections
import json
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
parser.add_argument("--precision", choices=["int4", "fp32"], default="int4")
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
    command += ["-i", source, "-o", args.out, "-p", args.precision, "-e", "cpu", "-c", temporary / "cache"]
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
    return seconds, usage.ru_maxrss / 1024  # Linux counts in KiB


def products(path):
    import onnx  # here, as an exec'ed child's peak memory is at least that of the process it came from

    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    counts = collections.Counter()
    for node in graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "MatMulNBits":
            kind = f"{attributes['bits']} bits, block {attributes['block_size']}"
            kind += ", zero points" if len(node.input) > 3 and node.input[3] else ""
            kind += f", accuracy level {attributes.get('accuracy_level', 0)}"
            weights = attributes["K"] * attributes["N"]
        elif node.op_type in ("MatMul", "Gather", "GatherBlockQuantized"):
            table = node.input[node.op_type == "MatMul"]
            if table not in sizes or len(sizes[table]) < 2:
                continue
            kind = f"{node.op_type}, not quantized" if node.op_type != "GatherBlockQuantized" else node.op_type
            weights = sizes[table][0] * sizes[table][1]
        else:
            continue
        counts[("head, " if "lm_head" in node.name else "") + kind, "nodes"] += 1
        counts[("head, " if "lm_head" in node.name else "") + kind, "weights"] += weights
    kinds = {kind for kind, _ in counts}
    return {kind: {"nodes": counts[kind, "nodes"], "weights": counts[kind, "weights"]} for kind in sorted(kinds)}


with tempfile.TemporaryDirectory() as temporary:
    text_model = pathlib.Path(temporary) / "text"
    text_model.mkdir()
    write_text_model(args.checkpoint, text_model)
    seconds, peak = run_builder(text_model, pathlib.Path(temporary))
size = sum(path.stat().st_size for path in args.out.glob("model.onnx*"))
result = {"seconds": round(seconds, 2), "peak_mb": round(peak, 1), "decoder_mb": round(size / 1e6, 3)}
print(json.dumps({**result, "products": products(args.out / "model.onnx")}))

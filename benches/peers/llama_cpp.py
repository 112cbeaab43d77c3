"""llama.cpp on the CPU: where the time of an answer goes, as one line of JSON.

    python3 llama_cpp.py setup FOLDER                builds it from llama-cpp-python's source package (20 minutes)
    python3 llama_cpp.py convert FOLDER CHECKPOINT   writes Q4_0 and Q8_0 vision files into FOLDER
    python3 llama_cpp.py bench FOLDER [--image FILE] [--prompt-tokens N] [--new-tokens N] [--repeat N] [--threads N]

The keys are those of `lfm2vl bench --json`. Texts are measured by llama-bench. With an image llama-mtmd-cli is run
for one token and for all of them, and its time from the loaded model to its end is taken; what it says of
encoding is the time of vision, its own preparation of the image not included.

Setting up needs pip and a C++ compiler; converting needs torch, transformers and safetensors.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

PACKAGE = "llama-cpp-python==0.3.36"
PROGRAMS = ["llama-bench", "llama-mtmd-cli", "llama-quantize", "llama-server"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("command", choices=["setup", "convert", "bench"])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("checkpoint", type=pathlib.Path, nargs="?")
parser.add_argument("--image")
parser.add_argument("--prompt-tokens", type=int, default=512)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--cold", action="store_true", help="only load, and give the first token")
parser.add_argument("--models", type=pathlib.Path, help="where converted files are, if not in FOLDER")
args = parser.parse_args()

source, models = args.folder / "source", args.models or args.folder
model, vision = models / "text-q4_0.gguf", models / "vision-q8_0.gguf"


def setup():
    # Its source, but not those of what pip builds it with, such as CMake.
    source_only = ["--no-binary", PACKAGE.split("==")[0]]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *source_only]
    subprocess.run([*pip, "--dest", args.folder / "package", PACKAGE], check=True)
    (package,) = (args.folder / "package").glob("*.tar.gz")
    with tarfile.open(package) as archive:
        archive.extractall(args.folder / "package", filter="data")
    (vendored,) = (args.folder / "package").glob("*/vendor/llama.cpp")
    shutil.move(vendored, source)
    shutil.rmtree(args.folder / "package")
    tools = args.folder / "tools"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "cmake", "ninja"], check=True)
    path = os.pathsep.join([str(tools / "bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(tools)}
    cmake = tools / "bin" / "cmake"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    options += ["-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF"]
    # Where the compiler may use AMX, llama-bench of this version ends with a segmentation fault in it.
    no_amx = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if platform.machine() == "x86_64" else ""
    options += [f"-DCMAKE_C_FLAGS={no_amx}", f"-DCMAKE_CXX_FLAGS={no_amx}"]
    build = args.folder / "build"
    subprocess.run([cmake, "-G", "Ninja", "-B", build, "-S", source, *options], check=True, env=environment)
    subprocess.run([cmake, "--build", build, "--target", *PROGRAMS], check=True, env=environment)


# Its converter knows tokenizers by a hash of what they do, and a random checkpoint has another one.
CONVERT = """
import sys
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "lfm2"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def convert():
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = pathlib.Path(folder)
        tensors = {}
        for file in args.checkpoint.iterdir():
            if file.suffix == ".safetensors":
                tensors.update(load_file(file))
            elif file.is_file() and "index" not in file.name:
                shutil.copy(file, folder)
        renamed = {re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", n): t for n, t in tensors.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        path = os.pathsep.join([str(source), str(source / "gguf-py"), os.environ.get("PYTHONPATH", "")])
        run = [sys.executable, "-c", CONVERT, folder, "--outfile"]
        whole = folder / "text-bf16.gguf"
        for arguments in [[whole, "--outtype", "bf16"], [vision, "--mmproj", "--outtype", "q8_0"]]:
            subprocess.run([*run, *arguments], check=True, env={**os.environ, "PYTHONPATH": path})
        subprocess.run([program("llama-quantize"), whole, model, "Q4_0"], check=True)


def program(name):
    return args.folder / "build" / "bin" / name


def text():
    """Prefill of the prompt, and decoding after it."""

    def rate(*arguments):
        command = [program("llama-bench"), "-m", model, "-t", args.threads, "-r", args.repeat, "-o", "json", *arguments]
        output = subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout
        return statistics.median(json.loads(output)[0]["samples_ts"])

    prefill = rate("-p", args.prompt_tokens, "-n", 0)
    report = {"prefill_tokens_per_second": prefill, "time_to_first_token_ms": 1e3 * args.prompt_tokens / prefill}
    if args.new_tokens > 1:
        report["decode_tokens_per_second"] = rate("-p", 0, "-n", args.new_tokens - 1, "-d", args.prompt_tokens)
    return report


def answer(tokens):
    """Seconds from the loaded model to the end, and in the vision encoder."""
    question = "The image shows a red square and a blue circle. " * -(-args.prompt_tokens // 11)
    command = [program("llama-mtmd-cli"), "-m", model, "--mmproj", vision, "--image", args.image, "-p", question]
    command += ["-t", args.threads, "-n", tokens, "--temp", 0, "--ignore-eos"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    start, encoding = None, 0
    for line in process.stderr:
        if "loading model" in line:
            start = time.perf_counter()
        if found := re.search(r"encoding done in (\d+) ms", line):
            encoding += int(found[1])
    if process.wait() or start is None:
        raise SystemExit("llama-mtmd-cli failed")
    return time.perf_counter() - start, encoding / 1e3


def image():
    firsts = [answer(1) for _ in range(args.repeat)]
    report = {
        "vision_ms": 1e3 * statistics.median(encoding for _, encoding in firsts),
        "time_to_first_token_ms": 1e3 * statistics.median(first for first, _ in firsts),
    }
    if args.new_tokens > 1:
        report["total_ms"] = 1e3 * statistics.median(answer(args.new_tokens)[0] for _ in range(args.repeat))
    return report


if args.command == "setup":
    setup()
elif args.command == "convert":
    convert()
elif args.cold:
    command = [program("llama-bench"), "-m", model, "-t", args.threads, "-p", args.prompt_tokens, "-n", 0]
    subprocess.run(list(map(str, [*command, "-r", 1, "--no-warmup"])), check=True, stdout=subprocess.DEVNULL)
    print("{}")
else:
    report = image() if args.image else text()
    report["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    print(json.dumps(report))

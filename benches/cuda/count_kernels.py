"""What a recorded step of the decoder, a prompt and a tile are on CUDA, by ONNX Runtime's own provider, where there is no GPU.

    python3 count_kernels.py FOLDER [--model 450m] [--precision fp16] [--rows 1 8 32]

FOLDER is what `cargo xtask gpu-check` makes. The provider runs on a runtime of CUDA that counts kernels and runs none
(`runtime.cc`, built with g++), so what is printed are counts, and how long the host takes for a step, a prompt and for
loading, of which a device's work is no part. Fails where the provider does what cannot be recorded. Needs nm and c++filt.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--model", default="450m")
parser.add_argument("--precision", default="fp16")
parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
parser.add_argument("--repeat", type=int, default=3)
args = parser.parse_args()
here = pathlib.Path(__file__).resolve().parent
(library,) = args.folder.resolve().glob("lib/libonnxruntime.so*")
provider = library.with_name("libonnxruntime_providers_cuda.so")

# Of a tile of 32x32 patches, which are 16x16 pixels of three float32; its features are of 2x2 patches.
TILE_BYTES = 32 * 32 * 16 * 16 * 3 * 4
TILE_TOKENS = 32 * 32 // 4

# Functions that start a kernel; the others only answer that all is well.
KERNELS = re.compile("gemm|Gemm|Matmul$|geam|MatrixTransform$|copy|scal|getr|ReduceTensor$|Forward$|Execute$")


def output_of(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def function(name):
    """A function of cuBLAS or cuDNN."""
    if re.search(r"Create(_v2)?$|^cudnnCreate", name):
        return f"int {name}(void **handle) {{ *handle = calloc(1, 64); return 0; }}"
    if name.endswith("AlgoGetHeuristic"):
        result = "memset(result, 0, 96); *found = 1; return 0;"
        return f"int {name}(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int n, char *result, int *found) {{ {result} }}"
    if "Status" in name or "String" in name:
        return f'const char *{name}() {{ return "an error"; }}'
    if KERNELS.search(name):
        return f'int {name}() {{ return count_kernel("{name}"); }}'
    return f"int {name}() {{ return 0; }}"


def build(folder):
    """The libraries that the provider is linked with, and cuDNN, which it loads."""

    def compiled(library, language, source, *options):
        # The provider wants symbols with the library's name as their version.
        versions = folder / "versions"
        versions.write_text(f"{library} {{ global: *; }};\n")
        command = ["g++", "-O1", "-w", "-fPIC", "-shared", "-x", language, source, "-o", folder / library]
        names = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
        output_of(*map(str, [*command, *names, "-L", folder, *options]))

    symbols = output_of("nm", "-D", "--undefined-only", str(provider)).split()
    of_libraries = collections.defaultdict(list)
    for symbol in symbols:
        name, _, version = symbol.partition("@")
        of_libraries[version].append(name)
    of_libraries["libcudnn.so"] = set(re.findall(rb"cudnn[A-Z]\w+", provider.read_bytes()))
    of_libraries["libcudnn.so"] = sorted(name.decode() for name in of_libraries["libcudnn.so"])
    of_libraries["libcuda.so.1"] = ["cuTensorMapEncodeTiled"]
    compiled("libcudart.so.13", "c++", here / "runtime.cc")
    for library in ("libcublas.so.13", "libcublasLt.so.13", "libcudnn.so", "libcuda.so.1", "libcurand.so.10"):
        source = folder / "source.c"
        head = ["#include <stdlib.h>", "#include <string.h>", "int count_kernel(const char *);"]
        source.write_text("\n".join(head + [function(name) for name in of_libraries[library]]))
        compiled(library, "c", source, "-Wno-builtin-declaration-mismatch", "-l:libcudart.so.13")


def events(folder, *options):
    """What happens in a bench with these options, and its figures."""
    path = folder / "events"
    environment = {"LD_LIBRARY_PATH": str(folder), "ORT_DYLIB_PATH": str(library), "CUDA_EVENTS": str(path)}
    environment["CUDA_PLACES"] = str(TILE_TOKENS)
    path.unlink(missing_ok=True)
    command = [args.folder / "lfm2vl", "bench", args.folder / args.model, "--precision", args.precision]
    command += ["--provider", "cuda", "--provider-option", "cuda.graph_capture=true"]
    command += [*options, "--repeat", args.repeat, "--json"]
    figures = json.loads(output_of(*map(str, command), env=os.environ | environment))
    return [line.split(" ", 1) for line in path.read_text().splitlines()], figures


def vision(folder):
    """Prints what a tile is."""
    image = args.folder / "photos/512x512.png"
    happened, figures = events(folder, "--image", image, "--prompt-tokens", 20, "--new-tokens", 1)
    # From where its pixels go to the device to where its features are kept there.
    starts = [at for at, event in enumerate(happened) if event == ["copy", f"host device {TILE_BYTES}"]]
    run = happened[starts[-1] :]
    hidden = json.loads((args.folder / "checkpoint/config.json").read_text())["text_config"]["hidden_size"]
    run = run[: run.index(["copy", f"device device {TILE_TOKENS * hidden * 4}"])]
    kernels = [what for kind, what in run if kind == "kernel"]
    waits = sum(kind == "synchronize" or what.startswith("device host") for kind, what in run)
    print(f"a tile of 512x512: {len(kernels)} kernels; the host waits {waits} times")
    print(f"  of the host: {figures['vision_ms']:.1f} ms")
    counted(kernels)


def prompt(folder):
    """Prints what a prompt is."""
    happened, figures = events(folder, "--prompt-tokens", 512, "--new-tokens", 1)
    tokens = figures["prompt_tokens"]
    # From where its tokens go to the device to where the candidates come from there.
    starts = [at for at, event in enumerate(happened) if event == ["copy", f"host device {8 * tokens}"]]
    run = happened[starts[-1] :]
    run = run[: next(at for at, (kind, what) in enumerate(run) if what.startswith("device host"))]
    kernels = [what for kind, what in run if kind == "kernel"]
    sent = sum(int(what.split()[-1]) for kind, what in run if what.startswith("host device"))
    print(f"a prompt of {tokens} tokens: {len(kernels)} kernels; {sent} bytes go to the device")
    print(f"  of the host: {figures['prefill_ms']:.1f} ms")
    counted(kernels)


def counted(kernels):
    for name, count in collections.Counter(readable(kernels)).most_common():
        print(f"  {count:4} {name}")


def readable(names):
    """Names of kernels without namespaces, types and arguments."""
    plain = output_of("c++filt", input="\n".join(names)).splitlines()
    return [re.sub(r"^void |\w+::|<.*|\(.*", "", name) or "(without a name)" for name in plain]


with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    build(folder)
    for rows in args.rows:
        happened, figures = events(folder, "--batch", rows, "--prompt-tokens", 128, "--new-tokens", 128)
        refused = [what for kind, what in happened if kind == "refused"]
        if refused:
            sys.exit(f"the provider calls {', '.join(sorted(set(refused)))} while it records")
        starts = [at for at, event in enumerate(happened) if event == ["capture", "begins"]]
        ends = [at for at, (kind, what) in enumerate(happened) if kind == "capture" and what.startswith("ends")]
        # The last one is over all rows.
        recorded = happened[starts[-1] + 1 : ends[-1]]
        kernels = [what for kind, what in recorded if kind == "captured" and not what.startswith("copy ")]
        copies = sum(what.startswith("copy ") for kind, what in recorded)
        print(f"{rows} together: {len(kernels)} kernels and {copies} copies in a recorded step; {len(starts)} recordings")
        replays = [at for at, (kind, _) in enumerate(happened) if kind == "replay"]
        between = [happened[a + 1 : b] for a, b in zip(replays, replays[1:])]
        to_device = [sum(kind == "copy" and what.startswith("host device") for kind, what in e) for e in between]
        step = 1e6 * rows / figures["decode_tokens_per_second"]
        print(f"  of the host: {step:.0f} us a step, {figures['load_ms']:.0f} ms loading")
        print(f"  {len(replays)} replays; before {sum(n == 0 for n in to_device)} of them nothing went to the device")
        counted(kernels)
    prompt(folder)
    vision(folder)

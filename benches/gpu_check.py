"""Whether a model gives the same answers on a GPU as on the CPU, and how fast it is there.

    python3 gpu_check.py [--provider cuda] [--samples N] [--rounds N] [--repeat N] [--minutes N] [--out FILE.json]

Runs in the folder that `cargo xtask gpu-check` makes, and needs nothing else. With torch installed it measures
what the device can do at most, with transformers that one in bfloat16, and with onnxruntime-genai-cuda that
one in float16; all take turns. It is to end in so many minutes: no second round begins that would not, and a program
that takes more than a quarter of the time that is left, and 20 seconds, is stopped and told of. FILE.json has what was
found when each round ends.
"""

import argparse
import base64
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--provider", default="cuda")
parser.add_argument("--samples", type=int, default=117)
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--minutes", type=float, default=6)
parser.add_argument("--out", type=pathlib.Path, default="gpu-check.json")
args = parser.parse_args()
here = pathlib.Path(__file__).resolve().parent
deadline = time.monotonic() + 60 * args.minutes
(library,) = here.glob("lib/libonnxruntime.so*")
environment = os.environ | {"ORT_DYLIB_PATH": str(library)}
config = json.loads((here / "checkpoint/config.json").read_text())
TOO_LONG = "takes more than"


def process(command, seconds=None):
    """A program that has ended, or was stopped after so many seconds: what it printed, and an error, if any."""
    command = list(map(str, command))
    # Files, which processes that it started may keep open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        failure = None
        with subprocess.Popen(command, env=environment, stdout=output, stderr=errors, text=True) as started:
            try:
                started.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                started.kill()
                failure = f"{TOO_LONG} {seconds:.0f} seconds"
        if started.returncode and not failure:
            errors.seek(0)
            failure = f"{' '.join(command)}\n{errors.read()}"
        output.seek(0)
        return output.read(), failure


def time_limit(least):
    """Seconds that a program may take."""
    return max(least, (deadline - time.monotonic()) / 4)


def call(*command):
    """What a program prints; Failed where it fails."""
    output, failure = process(command, time_limit(60))
    if failure:
        raise Failed(failure)
    return output


class Failed(Exception):
    """A program of ours does not do what it should."""


def run(*command):
    """What a program prints, which is JSON."""
    return json.loads(call(*command))


def device():
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no NVIDIA GPU"


def has(package):
    return importlib.util.find_spec(package) is not None


def limits():
    """Floating-point operations and bytes a second: of float16 products, and of copies."""
    import torch

    def seconds(work, repeat=20):
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeat

    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    source = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "flops": 2 * size**3 / seconds(lambda: a @ a),
        "bytes": 2 * source.numel() / seconds(lambda: target.copy_(source)),
    }


def on_device(recorded):
    """How a model is run there."""
    return ["--provider", args.provider, *(["--provider-option", "cuda.graph_capture=true"] if recorded else [])]


ANSWERS_ON_CPU = {}


def parity(model, precision, recorded):
    command = [here / "lfm2vl", "inspect", model, "--precision", precision, *on_device(recorded), "--json"]
    for graph in run(*command)["graphs"]:
        shares = [f"{assigned['nodes']} nodes on {assigned['provider']}" for assigned in graph["assignments"]]
        state = f"; state in the memory of {graph['state_memory']}" if graph["state_memory"] else ""
        print(f"  {graph['graph']}: {', '.join(shares)}{state}")
    questions = json.loads((here / "samples/samples.json").read_text())[: args.samples]
    # A CPU does not run the packed form; it has the same weights.
    key = (model.with_name(model.name.removesuffix("-packed")), precision)
    if key not in ANSWERS_ON_CPU:
        ANSWERS_ON_CPU[key] = answers(*key, ["--provider", "cpu"], questions)
    on_cpu = ANSWERS_ON_CPU[key]
    pairs = zip(on_cpu, answers(model, precision, on_device(recorded), questions), strict=True)
    same = sum(one == other for one, other in pairs)
    print(f"  {same} of {len(questions)} answers are the CPU's")
    return {"same": same, "of": len(questions)}


def answers(model, precision, provider, questions):
    """The answers to all questions, one after the other in one process."""
    with tempfile.TemporaryDirectory() as folder:
        requests, output = (pathlib.Path(folder) / name for name in ("requests.jsonl", "answers.jsonl"))
        requests.write_text("".join(json.dumps(request(question)) + "\n" for question in questions))
        options = ["--precision", precision, *provider, "--slots", 1]
        call(here / "lfm2vl", "batch", model, requests, "--output", output, *options)
        bodies = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
        errors = [body["error"]["message"] for body in bodies if "error" in body]
        if errors:
            raise Failed(f"{len(errors)} of {len(bodies)} are not answered: {errors[0]}")
        return [body["choices"][0]["message"]["content"] for body in bodies]


def request(question):
    """A chat completion."""
    content = []
    for image in question["images"]:
        data = base64.b64encode((here / "samples" / image).read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    content.append({"type": "text", "text": question["prompt"]})
    messages = [{"role": "system", "content": question["system"]}] if "system" in question else []
    messages.append({"role": "user", "content": content})
    return {"messages": messages, "temperature": 0, "max_completion_tokens": 256}


def vision_flops(patches_of_views):
    """Operations of the tower's products, of which attention has those of every pair of patches."""
    vision = config["vision_config"]
    width, layers, inner = (vision[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    return sum(layers * (2 * p * (4 * width**2 + 2 * width * inner) + 4 * p**2 * width) for p in patches_of_views)


BATCHES = [8, 32]
TILES = 8
PHOTOS = here / "photos"


def with_image(name):
    return {"image": str(PHOTOS / name), "prompt_tokens": 20, "new_tokens": 1}


# Name -> (which figure, what is measured).
SCENARIOS = {
    "vision, 512x512 tile, ms": ("vision_ms", with_image("512x512.png")),
    f"vision, {TILES} tiles and thumbnail, ms": ("vision_ms", with_image("2048x1024.png")),
    "photo: first token, ms": ("time_to_first_token_ms", with_image("1280x720.jpg")),
    "prefill of 512, tokens/s": ("prefill_tokens_per_second", {"prompt_tokens": 512, "new_tokens": 1}),
    "prefill of 2,048, tokens/s": ("prefill_tokens_per_second", {"prompt_tokens": 2048, "new_tokens": 1}),
    "decode after 128, tokens/s": ("decode_tokens_per_second", {"prompt_tokens": 128, "new_tokens": 128}),
}
for rows in BATCHES:
    batch = {"prompt_tokens": 128, "new_tokens": 128, "batch": rows}
    SCENARIOS[f"decode of {rows} together, tokens/s"] = ("decode_tokens_per_second", batch)


def contenders():
    """Name -> (command, what of the scenarios it can do)."""
    everything = ["image", "batch"]
    found = {}
    for precision in ("fp16", "q4f16"):
        bench = [here / "lfm2vl", "bench", here / "450m", *on_device(False)]
        found[f"lfm2vl {precision}"] = ([*bench, "--precision", precision], everything)
    if args.provider == "cuda":
        bench = ["--precision", "fp16", *on_device(True)]
        recorded = [here / "lfm2vl", "bench", here / "450m", *bench]
        found["lfm2vl fp16, recorded steps"] = (recorded, everything)
        found["lfm2vl fp16, recorded steps, none ahead"] = ([*recorded, "--no-run-ahead"], ["batch"])
        packed = [here / "lfm2vl", "bench", here / "450m-packed", *bench]
        found["lfm2vl fp16, packed, recorded steps"] = (packed, ["batch"])
        fixed = [here / "lfm2vl", "bench", here / "450m-graph", *bench]
        found["lfm2vl fp16, fixed sizes, recorded steps"] = (fixed, ["image"])
    if args.provider == "cuda" and has("transformers"):
        script = [sys.executable, here / "transformers_model.py", here / "checkpoint", "--dtype", "bfloat16"]
        found["transformers bf16"] = ([*script, "--device", "cuda"], everything)
        found["transformers bf16, compiled"] = ([*script, "--device", "cuda", "--compile"], ["batch"])
    if args.provider == "cuda" and has("onnxruntime_genai"):
        genai = [sys.executable, here / "genai_model.py", here / "genai"]
        found["genai fp16"] = (genai, ["batch"])
        found["genai fp16, recorded steps"] = ([*genai, "--cuda-graph"], ["batch"])
    return found


def measured(command, scenarios, seconds):
    """The figures of the scenarios that one process gets through, in order, and why it gets no further."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "scenarios.json"
        file.write_text(json.dumps([SCENARIOS[scenario][1] for scenario in scenarios]))
        output, failure = process([*command, "--scenarios", file, "--repeat", args.repeat], seconds)
    lines = [line for line in output.split("\n")[:-1] if line.startswith("{")]
    found = [json.loads(line).get(SCENARIOS[scenario][0]) for line, scenario in zip(lines, scenarios)]
    return found[: found.index(None)] if None in found else found, failure


def speed(report):
    """Adds the figures of each scenario, of how many rounds they are, and what was not measured, with the reason."""
    figures, given_up, report["medians"], report["failures"] = {}, {}, {}, []
    for rounds in range(1, max(1, args.rounds) + 1):
        start = time.monotonic()
        for name, (command, can) in contenders().items():
            can_do = [s for s, (_, what) in SCENARIOS.items() if all(k in can for k in ("image", "batch") if k in what)]
            left = [scenario for scenario in can_do if (name, scenario) not in given_up]
            while left:
                found, failure = measured(command, left, time_limit(20))
                for scenario, figure in zip(left, found):
                    of = figures.setdefault(scenario, {}).setdefault(name, [])
                    of.append(figure)
                    report["medians"].setdefault(scenario, {})[name] = statistics.median(of)
                left = left[len(found) :]
                # It goes on behind the one that it failed at, if it was not for the time.
                lost = len(left) if failure and failure.startswith(TOO_LONG) else 1
                given_up.update({(name, scenario): failure or "prints no figure" for scenario in left[:lost]})
                left = left[lost:]
        report["rounds"] = rounds
        # What an earlier round has measured is measured.
        none = {key: error for key, error in given_up.items() if key[0] not in report["medians"].get(key[1], {})}
        report["failures"] = [[*key, error] for key, error in none.items()]
        args.out.write_text(json.dumps(report, indent=1))
        if 2 * time.monotonic() - start > deadline:
            break


def shares(figures, most):
    """What the figures are of the device's limits."""
    # 8 tiles of 32x32 patches, and a thumbnail of 22x44.
    work = vision_flops([1024] * TILES + [968])
    for name, ms in figures.get(f"vision, {TILES} tiles and thumbnail, ms", {}).items():
        yield f"vision, {TILES} tiles, share of the float16 products' rate", name, work / (ms / 1e3) / most["flops"]
    for precision in ("fp16", "q4f16"):
        decoder = here / f"450m/onnx/decoder_model_merged_{precision}.onnx_data"
        for rows in (1, *BATCHES):
            scenario = "decode after 128, tokens/s" if rows == 1 else f"decode of {rows} together, tokens/s"
            if f"lfm2vl {precision}" not in figures.get(scenario, {}):
                continue
            steps = figures[scenario][f"lfm2vl {precision}"] / rows
            # In q4f16 the table of embeddings is float16, and a step reads one row of it.
            unread = config["text_config"]["vocab_size"] * config["text_config"]["hidden_size"] * 2
            read = decoder.stat().st_size - unread * (precision == "q4f16")
            share = steps * read / most["bytes"]
            yield f"decode of {rows}, share of the memory's rate", f"lfm2vl {precision}", share


def shown(report):
    names = list(contenders())
    print(f"the 450M shape, medians of up to {report['rounds']} rounds in turns\n")
    print("| |", " | ".join(names), "|\n|---|" + "---|" * len(names))
    for scenario, figures in report["medians"].items():
        print(f"| {scenario} |", " | ".join(f"{figures[n]:.1f}" if n in figures else "-" for n in names), "|")
    if args.provider == "cuda" and has("torch"):
        report["limits"] = limits()
        print(f"\nlimits, measured with torch: {report['limits']['flops'] / 1e12:.0f} TFLOP/s in float16, ", end="")
        print(f"{report['limits']['bytes'] / 1e12:.2f} TB/s")
        report["shares"] = [[*entry] for entry in shares(report["medians"], report["limits"])]
        for what, name, share in report["shares"]:
            print(f"  {what}, {name}: {share:.2f}")
    for name, scenario, error in report["failures"]:
        print(f"\n{name}: no figure for {scenario}: {error.strip().splitlines()[-1]}")


def check(report):
    print(report["device"])
    models = [("tiny-shapes", "fp16", False), ("tiny-shapes", "q4f16", False)]
    recorded_models = [("tiny-shapes", "fp16", True), ("tiny-shapes", "q4f16", True), ("tiny-shapes-graph", "fp16", True)]
    recorded_models += [("tiny-shapes-packed", "fp16", True), ("tiny-shapes-packed", "q4f16", True)]
    for model, precision, recorded in models + recorded_models * (args.provider == "cuda"):
        name = precision + ", fixed sizes" * model.endswith("-graph") + ", packed" * model.endswith("-packed")
        name += ", recorded steps" * recorded
        print(f"{name} on {args.provider}, the sample model")
        try:
            report["parity"][name] = parity(here / model, precision, recorded)
        except (Failed, ValueError, KeyError) as error:
            report["parity"][name] = {"error": repr(error)}
            print(f"  {error}")
    speed(report)
    shown(report)
    missing = [p for p in ("torch", "transformers", "onnxruntime_genai") if not has(p)]
    print(f"\nnot installed, and so left out: {', '.join(missing)}" if missing else "")


def is_right(report):
    """Whether answers are the CPU's, but for a few in 4 bits, and each of ours has every figure that it can have."""
    parts = {name: 0.95 if name.startswith("q4") else 1 for name in report["parity"]}
    same = all("error" not in of and of["same"] >= parts[name] * of["of"] for name, of in report["parity"].items())
    return same and not any(name.startswith("lfm2vl") for name, *_ in report["failures"])


report = {"device": device(), "provider": args.provider, "parity": {}}
try:
    check(report)
finally:
    args.out.write_text(json.dumps(report, indent=1))
sys.exit(0 if is_right(report) else "not all is as it should be: see above")

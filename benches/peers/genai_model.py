"""onnxruntime-genai: where the time of an answer goes, as one line of JSON.

    python3 genai_model.py MODEL [--prompt-tokens N] [--new-tokens N] [--batch N] [--repeat N] [--cold]
        [--cuda-graph] [--scenarios FILE]

MODEL is a text model that genai_builder.py made with --input-ids; the keys, and the scenarios of which each has a
line, are those of `lfm2vl bench`. Needs onnxruntime-genai and numpy.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
import onnxruntime_genai as og

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--prompt-tokens", type=int, default=512)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--batch", type=int, default=1, help="conversations that are decoded together")
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--cold", action="store_true", help="without a run before the first one")
parser.add_argument("--cuda-graph", action="store_true", help="record a step and replay it")
parser.add_argument("--scenarios", type=pathlib.Path, help="a JSON list of other prompt_tokens, new_tokens and batch")
args = parser.parse_args()

start = time.perf_counter()
config = og.Config(args.model)
if args.cuda_graph:
    config.set_provider_option("cuda", "enable_cuda_graph", "1")
model = og.Model(config)
load = time.perf_counter() - start


def measure(scenario, tokens):
    """Seconds of the prompt, and of the tokens after the first."""
    prompt = np.random.default_rng(0).integers(1000, 60000, tokens).astype(np.int32)
    parameters = og.GeneratorParams(model)
    length = len(prompt) + scenario["new_tokens"]
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length, batch_size=scenario["batch"])
    generator = og.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens(np.tile(prompt, (scenario["batch"], 1)))
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(scenario["new_tokens"] - 1):
        generator.generate_next_token()
    return first - start, time.perf_counter() - first


def report(scenario):
    if not args.cold:
        measure(scenario, 8)
    runs = [measure(scenario, scenario["prompt_tokens"]) for _ in range(args.repeat)]
    prefill, decode = (statistics.median(times) for times in zip(*runs))
    figures = {
        "load_ms": 1e3 * load,
        "prefill_tokens_per_second": scenario["prompt_tokens"] / prefill,
        "time_to_first_token_ms": 1e3 * prefill,
    }
    if scenario["new_tokens"] > 1:
        figures["decode_tokens_per_second"] = scenario["batch"] * (scenario["new_tokens"] - 1) / decode
    return figures


default = {name: getattr(args, name) for name in ("prompt_tokens", "new_tokens", "batch")}
for scenario in json.loads(args.scenarios.read_text()) if args.scenarios else [{}]:
    print(json.dumps(report({**default, **scenario})), flush=True)

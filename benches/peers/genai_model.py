"""onnxruntime-genai: where the time of an answer goes, as one line of JSON.

    python3 genai_model.py MODEL [--prompt-tokens N] [--new-tokens N] [--batch N] [--repeat N] [--cold]
        [--cuda-graph]

MODEL is a text model that genai_builder.py made with --input-ids; the keys are those of
`lfm2vl bench --json`. Needs onnxruntime-genai and numpy.
"""

import argparse
import json
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
args = parser.parse_args()

start = time.perf_counter()
config = og.Config(args.model)
if args.cuda_graph:
    config.set_provider_option("cuda", "enable_cuda_graph", "1")
model = og.Model(config)
load = time.perf_counter() - start
prompt = np.random.default_rng(0).integers(1000, 60000, args.prompt_tokens).astype(np.int32)


def measure(prompt):
    parameters = og.GeneratorParams(model)
    length = len(prompt) + args.new_tokens
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length, batch_size=args.batch)
    generator = og.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens(np.tile(prompt, (args.batch, 1)))
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(args.new_tokens - 1):
        generator.generate_next_token()
    return first - start, time.perf_counter() - first


if not args.cold:
    measure(prompt[:8])
runs = [measure(prompt) for _ in range(args.repeat)]
prefill, decode = (statistics.median(times) for times in zip(*runs))
report = {
    "load_ms": 1e3 * load,
    "prefill_tokens_per_second": args.prompt_tokens / prefill,
    "time_to_first_token_ms": 1e3 * prefill,
}
if args.new_tokens > 1:
    report["decode_tokens_per_second"] = args.batch * (args.new_tokens - 1) / decode
print(json.dumps(report))

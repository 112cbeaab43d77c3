"""Compares a decoder's tokens with and without the kernels of the package onnxruntime-ep-lfm2vl.

    python provider_wheel.py DECODER.onnx [--embed-tokens EMBED.onnx] [--instructions NAME]...

Runs the decoder greedily on some token ids, with plain ONNX Runtime and with each of the instructions
(the best by default). Prints one line of JSON: the tokens of each, the greatest difference of the
logits of the prompt's last token relative to their size, and the nodes and operators that the provider
took. The decoder takes `input_ids`, or `inputs_embeds` that the other graph makes of them.
"""

import argparse
import collections
import json

import numpy as np
import onnxruntime as ort
import onnxruntime_ep_lfm2vl as kernels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("decoder")
parser.add_argument("--embed-tokens")
parser.add_argument("--instructions", action="append")
parser.add_argument("--new-tokens", type=int, default=24)
parser.add_argument("--head-size", type=int, help="where the graph does not say it")
parser.add_argument("--no-prepacking", action="store_true")
args = parser.parse_args()

PROMPT = [1, 6, 42, 33, 17, 99, 64, 7, 12, 200, 31, 5, 77, 18]
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}

kernels.register(ort)
kernels.register(ort)  # A second time does no harm.


def options():
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if args.no_prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


embed = ort.InferenceSession(args.embed_tokens, providers=["CPUExecutionProvider"]) if args.embed_tokens else None


def generate(session):
    """The tokens, and the logits of the prompt's last one."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    sizes = {"kv_cache_dim": args.head_size}
    size = lambda axis, d: 1 if axis == 0 else d if isinstance(d, int) else sizes.get(d, 0)
    empty = lambda value: [size(axis, d) for axis, d in enumerate(value.shape)]
    state = {name: np.zeros(empty(v), TYPES[v.type]) for name, v in inputs.items() if name.startswith("past")}
    ids, seen, tokens, first = np.array([PROMPT]), 0, [], None
    while len(tokens) < args.new_tokens:
        feed = dict(state)
        seen += ids.shape[1]
        if "inputs_embeds" in inputs:
            feed["inputs_embeds"] = embed.run(None, {"input_ids": ids.astype(np.int64)})[0]
        else:
            feed["input_ids"] = ids.astype(TYPES[inputs["input_ids"].type])
        feed["attention_mask"] = np.ones((1, seen), np.int64)
        if "position_ids" in inputs:
            feed["position_ids"] = np.arange(seen - ids.shape[1], seen)[None]
        result = dict(zip(outputs, session.run(None, feed)))
        state = {name: result[name.replace("past_key_values", "present").replace("past", "present")] for name in state}
        logits = result["logits"][0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        ids = np.array([[tokens[-1]]])
    return tokens, first


def taken(session):
    """Nodes of each provider, and the operators of this one."""
    nodes, operators = collections.Counter(), collections.Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
        if part.ep_name == kernels.get_ep_name():
            operators.update(node.op_type for node in part.get_nodes())
    return {"nodes": nodes, "operators": operators}


plain, logits = generate(ort.InferenceSession(args.decoder, options(), providers=["CPUExecutionProvider"]))
report = {"onnxruntime": ort.__version__, "plain": plain}
for instructions in args.instructions or [None]:
    session = ort.InferenceSession(args.decoder, kernels.session_options(ort, options(), instructions))
    tokens, found = generate(session)
    report[instructions or "best"] = {
        "tokens": tokens,
        "difference": float(np.abs(found - logits).max() / np.abs(logits).max()),
        **(taken(session) if hasattr(session, "get_provider_graph_assignment_info") else {}),
    }
print(json.dumps(report))

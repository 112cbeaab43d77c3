"""Goldens of transformers' logits processors: which tokens they leave, with which scores.

    python make_sampling.py ../sampling/processors.json
"""

import json
import sys

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.manual_seed(0)
cases = []
for temperature in (0.1, 0.7, 1.0, 1.5):
    for top_k, top_p, min_p, penalty in [
        (None, None, None, 1.0),
        (5, None, None, 1.0),
        (None, 0.8, None, 1.0),
        (None, None, 0.15, 1.05),
        (8, 0.9, 0.05, 1.3),
        (1, None, None, 2.0),
    ]:
        logits = (torch.randn(24) * 3).round(decimals=3)
        history = torch.randint(0, 24, (7,))
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if top_p:
            processors.append(TopPLogitsWarper(top_p))
        if min_p:
            processors.append(MinPLogitsWarper(min_p))
        scores = processors(history[None], logits[None].clone())[0]
        kept = [(i, s) for i, s in enumerate(scores.tolist()) if s != -float("inf")]
        cases.append(
            {
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": penalty,
                "logits": logits.tolist(),
                "history": history.tolist(),
                "kept": kept,
            }
        )
with open(sys.argv[1], "w") as file:
    file.write("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")

"""LoRA adapters as peft saves them, each with what `merge_and_unload` makes of the float32 model.

Where token embedding and output head are one tensor, they are made two before the merge: peft would add to
both what was trained for one of them (its issue 2777), and twice what was trained for both. That the merged
model gives the logits of the adapter's is checked for each.

    pip install peft==0.21.2 accelerate==1.15.0
    python make_adapters.py .. ../adapters

`merged.safetensors` has the tensors that differ from the base's, by their released names: all of their
rows, or of large ones every so-and-so-many-th (`steps` in the metadata).
"""
import argparse
import json
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import checkpoint

ROWS = 8  # of a golden at most

CASES = {
    # Every kind of linear layer, by the ends of their names.
    "plain": ("tiny-shapes", dict(r=2, lora_alpha=8, target_modules=["q_proj", "w2", "in_proj", "fc2", "linear_1", "patch_embedding"])),
    # alpha / sqrt(r), and exceptions by pattern; the targets are an expression that looks ahead.
    "patterns": ("variants/layernorm-tied", dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r"model\.(?!vision_tower).*\.(q_proj|v_proj|w3|out_proj)",
        exclude_modules=["conv.out_proj"], rank_pattern={r"layers\.\d+\.feed_forward\.w3": 2, "v_proj": 3},
        alpha_pattern={r"^model\.language_model\.layers\.1\..*q_proj": 11, "w3": 5})),
    "some-layers": ("variants/layernorm-tied", dict(
        r=16, lora_alpha=3, target_modules=["w1", "k_proj"], layers_to_transform=[1], layers_pattern="layers")),
    # peft takes back `fan_in_fan_out` where a layer is linear.
    "all-linear": ("variants/no-layernorm", dict(r=1, lora_alpha=2, target_modules="all-linear", fan_in_fan_out=True)),
    "dora": ("variants/layernorm-tied", dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "fc1"])),
    "biases": ("variants/conv-bias", dict(r=2, lora_alpha=4, bias="all", target_modules=["in_proj", "fc2"])),
    "own-biases": ("variants/conv-bias", dict(r=2, lora_alpha=4, bias="lora_only", target_modules=["conv.out_proj", "fc1"])),
    "lora-bias": ("variants/conv-bias", dict(r=2, lora_alpha=5, lora_bias=True, target_modules=["conv.in_proj"])),
    "modules-to-save": ("variants/layernorm-tied", dict(
        r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["multi_modal_projector", "embedding_norm"])),
    "embedding": ("variants/untied", dict(r=9, lora_alpha=4, target_modules=["embed_tokens", "position_embedding"])),
    "embedding-tied": ("variants/layernorm-tied", dict(r=2, lora_alpha=4, target_modules=["embed_tokens"])),
    "embedding-both-tied": ("variants/layernorm-tied", dict(
        r=2, lora_alpha=4, target_modules=["embed_tokens"], ensure_weight_tying=True)),
    "head": ("variants/untied", dict(r=2, lora_alpha=4, target_modules=["lm_head"])),
    "head-tied": ("variants/layernorm-tied", dict(r=2, lora_alpha=4, target_modules=["lm_head"])),
    "saved-head-tied": ("variants/layernorm-tied", dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["lm_head"])),
    "saved-embedding-tied": ("variants/layernorm-tied", dict(
        r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["embed_tokens"])),
    "saved-both-tied": ("variants/layernorm-tied", dict(
        r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
}


def make(root, base, options, folder, seed):
    torch.manual_seed(seed)
    model = get_peft_model(checkpoint.load(root / base), LoraConfig(init_lora_weights=False, **options))
    for key, value in model.named_parameters():
        if value.requires_grad and "lora_" not in key:
            value.data += 0.02 * torch.randn_like(value)
        elif "lora_magnitude_vector" in key:
            value.data *= 1 + 0.1 * torch.rand_like(value)
        elif "lora_B" in key and key.endswith("bias"):
            value.data = 0.1 * torch.randn_like(value)
        elif "lora_embedding" in key:
            value.data *= 0.1
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"testdata/{base}"
    # peft keeps these as sets.
    config = {k: sorted(v) if k.endswith("_modules") and isinstance(v, list) else v for k, v in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    half = {k: v.to(torch.bfloat16) for k, v in load_file(folder / "adapter_model.safetensors").items()}
    save_file(half, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def untie(model):
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if hasattr(layer, "modules_to_save"):
            continue  # a copy already
        layer = getattr(layer, "base_layer", layer)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 60)[None]).logits


def merged(base, folder):
    before = checkpoint.released_names(checkpoint.load(base).state_dict(), False)
    model = PeftModel.from_pretrained(checkpoint.load(base), folder)
    want = logits(model)
    untie(model)
    model = model.merge_and_unload()
    difference = (want - logits(model)).abs().max() / want.abs().max()
    assert difference < 1e-5, (folder, difference)
    after = checkpoint.released_names(model.state_dict(), False)
    assert set(before) == set(after), set(before) ^ set(after)
    changed = {k: v.detach() for k, v in after.items() if not torch.equal(before[k], v)}
    steps = {k: -(-len(v) // ROWS) for k, v in changed.items()}
    return {k: v[::steps[k]].contiguous() for k, v in changed.items()}, steps


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("root")
    p.add_argument("out")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    root = Path(a.root)
    for seed, (name, (base, options)) in enumerate(CASES.items()):
        folder = Path(a.out) / name
        shutil.rmtree(folder, ignore_errors=True)
        make(root, base, options, folder, seed)
        tensors, steps = merged(root / base, folder)
        metadata = {"merged": json.dumps({"base": base, "steps": steps}, sort_keys=True)}
        save_file(tensors, folder / "merged.safetensors", metadata=metadata)
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {len(tensors)} tensors differ, {size / 1e3:.0f} kB", [k for k in tensors if "embed_tokens" in k or "lm_head" in k])


if __name__ == "__main__":
    main()

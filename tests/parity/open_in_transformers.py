"""Opens model folders that thinkvg wrote with transformers and compares their logits with thinkvg's own.

Usage: python tests/parity/open_in_transformers.py MODEL_FOLDER ...
Each folder holds numbers.safetensors, too: ids [T], pixel_values [P, width] and grids [N, 3] (both may be missing),
logits [T, V], end [E], and where there is an adapter in the folder below it, adapted_logits [T, V]. Exit code 0: every
folder opens as the class that its config.json names, without missing or unexpected tensors, its adapter with PEFT, and
the largest differences of the logits are below 1e-4.
"""

import json
import pathlib
import sys
import warnings

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText


def whole_pictures(patches, grids, vision):
    """Pictures [N, 3, S, S] of patches in rows; a margin that no patch covers is black."""
    side, size, patch = grids[0, 1].item(), vision.image_size, vision.patch_size
    pictures = patches.view(len(grids), side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    pictures = pictures.reshape(len(grids), 3, side * patch, side * patch)
    margin = size - side * patch
    return torch.nn.functional.pad(pictures, (0, margin, 0, margin))


def compare(folder):
    numbers = load_file(folder / "numbers.safetensors")
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    named = json.loads((folder / "config.json").read_text())["architectures"]
    if [type(model).__name__] != named:
        sys.exit(f"{folder} opens as {type(model).__name__}, config.json names {named}")
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            sys.exit(f"{folder}: {kind}: {sorted(report[kind])}")
    end = model.generation_config.eos_token_id
    if (end if isinstance(end, list) else [end]) != numbers["end"].tolist():
        sys.exit(f"generation_config.json ends at {end}, expected {numbers['end'].tolist()}")
    ids = numbers["ids"][None]
    config = model.config
    kinds = (ids == config.image_token_id).int()
    inputs = {"input_ids": ids}
    if config.model_type.startswith("qwen"):
        inputs["mm_token_type_ids"] = kinds
    if config.model_type == "gemma3":
        inputs["token_type_ids"] = kinds
    if "grids" in numbers and config.model_type.startswith("qwen"):
        inputs |= {"pixel_values": numbers["pixel_values"], "image_grid_thw": numbers["grids"]}
    elif "grids" in numbers:
        inputs["pixel_values"] = whole_pictures(numbers["pixel_values"], numbers["grids"], config.vision_config)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0]
    differences = [(logits - numbers["logits"]).abs().max().item()]
    if (folder / "adapter").exists() != ("adapted_logits" in numbers):
        sys.exit(f"{folder}: an adapter and its adapted_logits belong together")
    if "adapted_logits" in numbers:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT only warns of tensors that it did not find
            adapted = PeftModel.from_pretrained(model, folder / "adapter").eval()(**inputs).logits[0]
        differences.append((adapted - numbers["adapted_logits"]).abs().max().item())
    print(f"{folder.name}: largest differences of the logits: {[f'{value:.2e}' for value in differences]}")
    return max(differences) < 1e-4


def main():
    results = [compare(pathlib.Path(folder)) for folder in sys.argv[1:]]
    if not results or not all(results):
        sys.exit("the logits differ")


if __name__ == "__main__":
    main()

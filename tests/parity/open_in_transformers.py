"""Opens a model folder that thinkvg wrote with transformers and compares its logits with thinkvg's own.

Usage: python tests/parity/open_in_transformers.py MODEL_FOLDER NUMBERS.safetensors
NUMBERS holds ids [T], pixel_values [P, width] and grids [N, 3] (both may be missing), logits [T, V], end [E].
Exit code 0: the folder opens as Qwen2_5_VLForConditionalGeneration without missing or unexpected tensors, and the
largest difference of the logits is below 1e-4.
"""

import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration


def main():
    folder, numbers = sys.argv[1], load_file(sys.argv[2])
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if type(model) is not Qwen2_5_VLForConditionalGeneration:
        sys.exit(f"{folder} opens as {type(model).__name__}")
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            sys.exit(f"{folder}: {kind}: {sorted(report[kind])}")
    end = model.generation_config.eos_token_id
    if (end if isinstance(end, list) else [end]) != numbers["end"].tolist():
        sys.exit(f"generation_config.json ends at {end}, expected {numbers['end'].tolist()}")
    ids = numbers["ids"][None]
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == model.config.image_token_id).int()}
    if "grids" in numbers:
        inputs |= {"pixel_values": numbers["pixel_values"], "image_grid_thw": numbers["grids"]}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0]
    difference = (logits - numbers["logits"]).abs().max().item()
    print(f"largest difference of the logits: {difference:.2e}")
    if not difference < 1e-4:
        sys.exit("the logits differ")


if __name__ == "__main__":
    main()

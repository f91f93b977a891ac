"""Opens tokenizer and processor of a model folder that thinkvg wrote with transformers, and compares what they make of a
question about a picture.

Usage: python tests/parity/open_processor.py MODEL_FOLDER
The folder holds processed.safetensors, too: picture [H, W, 3] uint8, pixel_values [P, width] in rows of patches, ids [T]
of the conversation; and processed.json with the conversation's messages. Exit code 0: AutoProcessor opens the folder, and
ids and pixels are equal.
"""

import json
import pathlib
import sys

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor


def main():
    folder = pathlib.Path(sys.argv[1])
    numbers = load_file(folder / "processed.safetensors")
    messages = json.loads((folder / "processed.json").read_text())
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    # A small model's own tokenizer is LLaMA's class, which has no such names.
    for name, token in (("image_token", "<|image_pad|>"), ("video_token", "<|video_pad|>")):
        if "Qwen" in type(processor).__name__ and not hasattr(tokenizer, name):
            setattr(tokenizer, name, token)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    picture = Image.fromarray(numbers["picture"].numpy())
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    if inputs["input_ids"][0].tolist() != numbers["ids"].tolist():
        sys.exit(f"ids: {inputs['input_ids'][0].tolist()}, expected {numbers['ids'].tolist()}")
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4:  # a picture, where ours has rows of patches
        side = round((numbers["pixel_values"].shape[1] / 3) ** 0.5)
        pixels = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
        pixels = pixels.reshape(numbers["pixel_values"].shape)
    if not torch.equal(pixels, numbers["pixel_values"]):
        sys.exit(f"pixels differ by {(pixels - numbers['pixel_values']).abs().max()}")


if __name__ == "__main__":
    main()

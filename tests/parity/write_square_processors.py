"""Writes the reference states of tests/models/processor_test.cc for LLaVA's, CLIP's, Gemma 3's and SigLIP's processors.

Usage: python tests/parity/write_square_processors.py [--out tests/data/square_processors]
cases.json holds each case's preprocessor_config.json, state.safetensors the pictures and what the processors of
transformers (torchvision back end) make of them. Written with torch 2.11, torchvision 0.26 and transformers 5.23.
"""

import argparse
import json
import pathlib
import random

import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, Gemma3ImageProcessor, LlavaImageProcessor, SiglipImageProcessor

SIDE = 20


def picture(height, width, generator):
    # A gradient, edges and noise: every kind of content that a filter may blur wrongly.
    y = torch.linspace(0, 255, height)[None, :, None]
    x = torch.linspace(255, 0, width)[None, None, :]
    noise = torch.randint(0, 256, (3, height, width), generator=generator)
    pixels = (0.3 * x + 0.3 * y + 0.4 * noise).round()
    pixels[:, height // 3: height // 2, : width // 2] = 255
    pixels[1, :, width // 2] = 0
    return pixels.clamp(0, 255).to(torch.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "data/square_processors")
    out = parser.parse_args().out
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    square, shortest = {"height": SIDE, "width": SIDE}, {"shortest_edge": SIDE}
    processors = [
        CLIPImageProcessor(size=shortest, crop_size=square),
        CLIPImageProcessor(size={"shortest_edge": SIDE + 5}, crop_size=square),
        LlavaImageProcessor(size=shortest, crop_size=square, do_pad=True),
        Gemma3ImageProcessor(size=square),
        SiglipImageProcessor(size=square),
    ]
    cases, state = [], {}
    for processor in processors:
        sizes = [(SIDE, SIDE), (9, 13), (61, 23), (23, 61), (150, 97)]
        sizes += [(rng.randint(7, 110), rng.randint(7, 110)) for _ in range(4)]
        for height, width in sizes:
            number = len(cases)
            cases.append(json.loads(processor.to_json_string()))
            pixels = picture(height, width, generator)
            state[f"{number}:pixels"] = pixels.permute(1, 2, 0).contiguous()
            state[f"{number}:values"] = processor(images=[pixels], return_tensors="pt")["pixel_values"][0].contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "state.safetensors")
    (out / "state.safetensors").chmod(0o644)
    (out / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()

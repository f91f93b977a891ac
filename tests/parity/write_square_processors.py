"""Writes the reference states of tests/models/processor_test.cc for LLaVA's, CLIP's, Gemma 3's and SigLIP's processors.

Usage: python tests/parity/write_square_processors.py [--out tests/data/square_processors]
cases.json holds each case's preprocessor_config.json, state.safetensors the pictures and what the processors of
transformers (torchvision back end) make of them. Printed: by how much the Pillow back end differs, in parts of 255.
Written with torch 2.11, torchvision 0.26 and transformers 5.23.
"""

import argparse
import json
import pathlib
import random

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, Gemma3ImageProcessor, LlavaImageProcessor, SiglipImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

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
        (CLIPImageProcessor, CLIPImageProcessorPil, dict(size=shortest, crop_size=square)),
        (CLIPImageProcessor, CLIPImageProcessorPil, dict(size={"shortest_edge": SIDE + 5}, crop_size=square)),
        (LlavaImageProcessor, LlavaImageProcessorPil, dict(size=shortest, crop_size=square, do_pad=True)),
        (Gemma3ImageProcessor, Gemma3ImageProcessorPil, dict(size=square)),
        (SiglipImageProcessor, SiglipImageProcessorPil, dict(size=square)),
    ]
    cases, state = [], {}
    for torchvision_class, pillow_class, settings in processors:
        processor, pillow, largest = torchvision_class(**settings), pillow_class(**settings), 0.0
        sizes = [(SIDE, SIDE), (9, 13), (61, 23), (23, 61), (150, 97)]
        sizes += [(rng.randint(7, 110), rng.randint(7, 110)) for _ in range(4)]
        for height, width in sizes:
            number = len(cases)
            cases.append(json.loads(processor.to_json_string()))
            pixels = picture(height, width, generator)
            state[f"{number}:pixels"] = pixels.permute(1, 2, 0).contiguous()
            state[f"{number}:values"] = processor(images=[pixels], return_tensors="pt")["pixel_values"][0].contiguous()
            picture_of_pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            other = pillow(images=[picture_of_pillow], return_tensors="pt")["pixel_values"][0]
            spread = 255 * torch.tensor(processor.image_std)[:, None, None]
            largest = max(largest, ((state[f"{number}:values"] - other).abs() * spread).max().item())
        print(f"{torchvision_class.__name__}: Pillow's back end differs by up to {largest:.2f} of 255")
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "state.safetensors")
    (out / "state.safetensors").chmod(0o644)
    (out / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()

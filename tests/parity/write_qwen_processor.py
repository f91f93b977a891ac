"""Writes the reference state of tests/models/processor_test.cc with transformers' Qwen2VLImageProcessor (torchvision).

Usage: python tests/parity/write_qwen_processor.py [--out tests/data/qwen_processor/state.safetensors]
Written with torch 2.11, torchvision 0.26 and transformers 5.23.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

# height, width, patch, merge, temporal patch, min pixels, max pixels
CASES = [
    (70, 70, 14, 2, 2, 784, 1003520),    # 2.5 cells: half to even
    (45, 37, 4, 2, 2, 64, 4096),         # nearly its own size, odd sides
    (131, 97, 4, 2, 1, 64, 1600),        # much smaller: above max_pixels
    (9, 23, 4, 2, 2, 1024, 4096),        # larger: below min_pixels
    (7, 90, 6, 1, 2, 36, 2000),          # flat
    (48, 32, 4, 2, 2, 64, 4096),         # no resizing at all
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "data/qwen_processor/state.safetensors")
    out = parser.parse_args().out
    generator = torch.Generator().manual_seed(0)
    state = {}
    for number, case in enumerate(CASES):
        height, width, patch, merge, temporal, smallest, largest = case
        # A gradient, edges and noise: every kind of content that a filter may blur wrongly.
        y = torch.linspace(0, 255, height)[None, :, None]
        x = torch.linspace(255, 0, width)[None, None, :]
        noise = torch.randint(0, 256, (3, height, width), generator=generator)
        pixels = (0.3 * x + 0.3 * y + 0.4 * noise).round()
        pixels[:, height // 3: height // 2, : width // 2] = 255
        pixels[1, :, width // 2] = 0
        pixels = pixels.clamp(0, 255).to(torch.uint8)
        processor = Qwen2VLImageProcessor(patch_size=patch, merge_size=merge, temporal_patch_size=temporal,
                                          min_pixels=smallest, max_pixels=largest)
        result = processor(images=[pixels], return_tensors="pt")
        state[f"{number}:options"] = torch.tensor(case[2:])
        state[f"{number}:pixels"] = pixels.permute(1, 2, 0).contiguous()
        state[f"{number}:values"] = result["pixel_values"].contiguous()
        state[f"{number}:grid"] = result["image_grid_thw"].contiguous()
        print(case, result["image_grid_thw"].tolist())
    sizes = [(70, 70), (98, 42), (14, 28), (1, 199), (2544, 3056), (3056, 2544), (336, 336), (224, 224), (13, 13)]
    sizes += [tuple(row) for row in torch.randint(1, 2500, (200, 2), generator=generator).tolist()]
    rows = [(h, w, *smart_resize(h, w, 28, 3136, 1003520)) for h, w in sizes if max(h, w) <= 200 * min(h, w)]
    state["sizes"] = torch.tensor(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out)
    out.chmod(0o644)


if __name__ == "__main__":
    main()

"""Writes tests/data/processor_geometry.json with the geometry of transformers' LLaVA and Gemma 3 processors.

Usage: python tests/parity/write_processor_geometry.py
Written with transformers 5.23.0. No pixel is touched: crops are views, their place is the view's offset.
"""

import json
import pathlib
import random

import numpy as np
import torch
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import SizeDict
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor


def place(view, width):
    offset = view.storage_offset()
    return [offset % width, offset // width, view.shape[-1], view.shape[-2]]


def main():
    rng = random.Random(3)
    llava, gemma = LlavaImageProcessor(), Gemma3ImageProcessor()
    sizes = [(2544, 3056), (3056, 2544), (336, 336), (1, 700), (700, 1), (512, 256), (1001, 256), (300, 1000)]
    sizes += [(rng.randint(1, 3200), rng.randint(1, 3200)) for _ in range(150)]
    sizes += [(rng.randint(250, 600), rng.randint(900, 3200)) for _ in range(60)]
    rows = []
    for width, height in sizes:
        side = rng.choice([224, 336, 335, 896])
        new_height, new_width = get_resize_output_image_size(np.empty((3, height, width), np.uint8), side,
                                                             default_to_square=False, input_data_format="channels_first")
        crop = [rng.randint(1, side), rng.randint(1, side)]
        picture = torch.as_strided(torch.empty(new_height * new_width, dtype=torch.uint8), (1, new_height, new_width),
                                   (0, new_width, 1))
        cropped = llava.center_crop(picture, SizeDict(width=crop[0], height=crop[1]))
        options = rng.choice([(256, 4, 1.2), (128, 3, 1.0), (300, 6, 1.7), (64, 8, 2.0)])
        picture_pan = torch.as_strided(torch.empty(height * width, dtype=torch.uint8), (1, height, width), (0, width, 1))
        crops = [place(c, width) for c in gemma.pan_and_scan_batched(picture_pan, *options)]
        rows.append({"size": [width, height], "side": side, "resized": [new_width, new_height], "crop": crop,
                     "cropped": place(cropped, new_width), "options": options, "crops": crops})
    out = pathlib.Path(__file__).resolve().parents[1] / "data/processor_geometry.json"
    out.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(len(rows), "sizes,", sum(bool(row["crops"]) for row in rows), "of them panned")


if __name__ == "__main__":
    main()

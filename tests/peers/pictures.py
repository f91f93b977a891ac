"""Pictures a second: this project against Pillow, transformers' Qwen2.5-VL processor and torch's DataLoader.

Usage: python tests/peers/pictures.py --bench build/release/tests/bench_pictures --work DIR [--cores 2] [--rounds 5]
Both sides read the same files of 2544 x 3056 pixels (a real chest radiograph of PyPI's pydicom-data, rendered as
MIMIC-CXR-JPG was, JPEG quality 95, with noise of its own in each) and end at the same float32 patches, which is checked
first (SHA-256 of the first picture's). Then the sides take turns: A B A B .., the first round is thrown away. The peer:
Image.open, convert("RGB"), Qwen2VLImageProcessor (torchvision back end), one worker process a core, one torch thread in
each, which is its fastest setting here. Build bench_pictures first: ninja -C build/release bench_pictures.
"""

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor


def make_pictures(folder, count):
    import cv2
    import data_store
    import pydicom

    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("*.jpg"))) == count:
        return
    data = pydicom.dcmread(pathlib.Path(data_store.__file__).parent / "data/RG1_UNCR.dcm")
    pixels = data.pixel_array.astype(np.float64)
    grey = 255 - (255 * (pixels - pixels.min()) / (pixels.max() - pixels.min())).astype(np.uint8)
    grey = cv2.resize(cv2.equalizeHist(grey), (2544, 3056), interpolation=cv2.INTER_CUBIC)
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, 2.0, grey.shape)
        cv2.imwrite(str(folder / f"{i:03}.jpg"), np.clip(grey + noise, 0, 255).astype(np.uint8),
                    [cv2.IMWRITE_JPEG_QUALITY, 95])


class Pictures(Dataset):
    def __init__(self, files, max_pixels, passes):
        self.files, self.passes = files, passes
        self.processor = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=max_pixels)

    def __len__(self):
        return len(self.files) * self.passes

    def __getitem__(self, index):
        with Image.open(self.files[index % len(self.files)]) as picture:
            rgb = picture.convert("RGB")
        return self.processor(images=[rgb], return_tensors="pt")["pixel_values"]


def first_item(batch):
    return batch[0]


def one_thread(_):
    torch.set_num_threads(1)


def peer_rate(pictures, cores):
    loader = DataLoader(pictures, batch_size=1, num_workers=cores, collate_fn=first_item, worker_init_fn=one_thread,
                        prefetch_factor=2, persistent_workers=True)
    for _ in loader:  # starts the workers
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    return len(pictures) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_pixels", type=int, default=1003520)
    options = parser.parse_args()
    folder = options.work / "pictures"
    make_pictures(folder, options.pictures)
    files = sorted(folder.glob("*.jpg"))
    megabytes = sum(file.stat().st_size for file in files) / len(files) / 1e6

    def own(*flags):
        out = subprocess.run([options.bench, folder, "--threads", str(options.cores), "--max_pixels",
                              str(options.max_pixels), "--passes", "2", *flags], check=True, capture_output=True)
        return json.loads(out.stdout)

    pictures = Pictures(files, options.max_pixels, 1)
    wanted = hashlib.sha256(pictures[0].contiguous().numpy().tobytes()).hexdigest()
    got = own()
    print(f"{len(files)} pictures of {megabytes:.2f} MB, {got['rows']} patches each, {options.cores} cores, load "
          f"{os.getloadavg()[0]:.2f}")
    if got["sha256"] != wanted:
        sys.exit("the patches of the two sides differ: nothing was measured")
    print("patches equal to the bit")
    ours, theirs, reduced = [], [], []
    for round_ in range(options.rounds + 1):
        a, b, c = own(), peer_rate(pictures, options.cores), own("--reduced")
        if round_ == 0:
            continue
        ours.append(a)
        theirs.append(b)
        reduced.append(c)
    rates = [a["pictures_per_second"] for a in ours]
    fast = [c["pictures_per_second"] for c in reduced]
    for name, values in (("thinkvg", rates), ("DataLoader", theirs), ("thinkvg, reduced_jpeg (not exact)", fast)):
        print(f"{name:36} {statistics.median(values):7.2f} pictures/s (best {max(values):.2f})")
    ratios = [a / b for a, b in zip(rates, theirs)]
    print(f"ratio, median of rounds: {statistics.median(ratios):.2f}; with reduced_jpeg "
          f"{statistics.median(a / b for a, b in zip(fast, theirs)):.2f}")
    stages = {key: statistics.median(a["milliseconds"][key] for a in ours) for key in ours[0]["milliseconds"]}
    print("milliseconds a picture and core:", ", ".join(f"{key} {value:.1f}" for key, value in stages.items()))


if __name__ == "__main__":
    main()

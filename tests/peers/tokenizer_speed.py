"""Compares thinkvg's tokenizers with Hugging Face's `tokenizers` in MB/s, run by run on the same texts.

Usage: python tests/peers/tokenizer_speed.py build/release/tests/tokenizer_speed [--threads N] [--rounds 3]
Needs what tests/parity/write_tokenizers.py needs. Best of five passes on both sides; single: one text after the other on
one thread; batch: encode_batch with N threads. Both sides see every text once before they are timed.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))


def radiology(rng, count):
    parts = ["The {s} {z} (region [{a}, {b}, {c}, {d}]) shows {f}.", "No {f} is seen in the {s} {z}.",
             "Compared with the previous study, {f} in the {s} {z} has {w}.", "Is there any {f} in the {s} {z}?",
             "<answer>{f}</answer><location><ref>{s} {z}</ref><box>[{a}, {b}, {c}, {d}]</box></location>"]
    words = {"s": ["left", "right", "bilateral"], "z": ["upper lung zone", "costophrenic angle", "hilar structures",
                                                        "hemidiaphragm", "clavicle", "apical zone"],
             "f": ["pleural effusion", "an opacity consistent with pneumonia", "atelectasis", "cardiomegaly",
                   "interstitial oedema", "pneumothorax", "a calcified granuloma"],
             "w": ["increased", "decreased", "resolved", "not changed"]}
    texts = []
    for _ in range(count):
        sentences = [rng.choice(parts).format(**{k: rng.choice(v) for k, v in words.items()},
                                              **{k: rng.randint(0, 336) for k in "abcd"}) for _ in range(12)]
        texts.append(" ".join(sentences))
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import write_tokenizers as oracle

    rng = random.Random(0)
    prose = []
    for file in sorted(pathlib.Path(json.__file__).parent.parent.glob("*.py"))[:60]:
        prose += [block for block in file.read_text(errors="replace").split("\n\n") if block]
    data = {"radiology": radiology(rng, 3000), "code": prose[:6000], "awkward": oracle.awkward_strings()}
    mistral = oracle.package_folder("mistral_common") / "data"
    qwen = oracle.package_folder("dashscope") / "resources/qwen.tiktoken"
    real = dict(oracle.real_tokenizers())
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        for name, file, target in [("mistral_v1", mistral / "tokenizer.model.v1", "tokenizer.model"),
                                   ("tekken", mistral / "tekken_240911.json", "tekken.json"),
                                   ("qwen_tiktoken", qwen, "qwen.tiktoken")]:
            (root / name).mkdir()
            shutil.copy(file, root / name / target)
        for kind, texts in data.items():
            encoded = [text.encode() for text in texts]
            file = root / f"{kind}.bin"
            file.write_bytes(struct.pack("<i", len(texts)) + b"".join(struct.pack("<i", len(t)) + t for t in encoded))
            megabytes = sum(map(len, encoded)) / 1e6
            for name in ("qwen_tiktoken", "tekken", "mistral_v1"):
                for _ in range(args.rounds):
                    ours = json.loads(subprocess.check_output([args.program, root / name, file, str(args.threads)]))
                    single = batch = decode = 1e30
                    for _ in range(5):
                        start = time.perf_counter()
                        rows = [real[name].encode(text, add_special_tokens=False).ids for text in texts]
                        single = min(single, time.perf_counter() - start)
                        start = time.perf_counter()
                        real[name].encode_batch_fast(texts, add_special_tokens=False)
                        batch = min(batch, time.perf_counter() - start)
                        start = time.perf_counter()
                        for row in rows:
                            real[name].decode(row)
                        decode = min(decode, time.perf_counter() - start)
                    same = "same number of ids" if sum(map(len, rows)) == ours["ids"] else "IDS DIFFER"
                    print(f"{kind:10} {name:14} {megabytes:5.1f} MB  encode {ours['encode_mb_s']:6.1f} | "
                          f"{megabytes / single:5.1f} = {ours['encode_mb_s'] * single / megabytes:5.1f}x   "
                          f"batch {ours['batch_mb_s']:6.1f} | {megabytes / batch:5.1f} = "
                          f"{ours['batch_mb_s'] * batch / megabytes:5.1f}x   decode {ours['decode_mb_s']:6.1f} | "
                          f"{megabytes / decode:5.1f} = {ours['decode_mb_s'] * decode / megabytes:5.1f}x   "
                          f"load {ours['load_s']:.2f} s   {same}", flush=True)


if __name__ == "__main__":
    main()

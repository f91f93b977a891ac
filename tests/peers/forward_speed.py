"""A forward pass over one prompt side by side with transformers: tokens/s of prefill, text and picture.

    ninja -C build/release bench_forward
    python tests/peers/forward_speed.py --program build/release/tests/bench_forward [--shapes 0.1B,0.4B] [--tokens 512]

Random Qwen2.5-VL models of decode_speed.py's shapes are written once and read by both. A pass is what a prompt costs
before its first token: vision tower, decoder, logits of the last token. "text" is --tokens random tokens, "picture" as
many with a picture of 144 image tokens among them. Logits are compared first (fp32 must agree within 1e-3 of their
largest), then both are timed in turns, A B A B ..., each in its own process, on all cores, behind a warm-up. The peer
computes the logits of the last token alone, too, in inference mode, with sdpa attention and no cache. Needs an idle machine: refuses above a load of 0.3 without --force.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

from decode_speed import DTYPES, SHAPES, machine_line, make_model, make_work, peer_inputs, save_work, seconds_of

IMAGE_TOKENS = 144  # of make_work's picture, with two markers around


def peer(options):
    """One process of the peer; prints one JSON line."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    setup = json.loads(options.peer)
    torch.set_num_threads(options.threads)
    dtype = DTYPES[setup["dtype"]]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(setup["model"], dtype=dtype,
                                                               attn_implementation="sdpa").eval()
    tensors = load_file(setup["work"])
    item = {name: tensors[name + "_0"] for name in ("prompt", "pixels", "grid") if name + "_0" in tensors}
    inputs = peer_inputs([item], 1, dtype)

    def forward():
        with torch.inference_mode():
            return model(**inputs, use_cache=False, logits_to_keep=1).logits[0]

    logits = forward()
    seconds = [seconds_of(forward) for _ in range(options.passes)]
    save_file({"logits": logits.float().contiguous()}, setup["logits"])
    print(json.dumps({"seconds": seconds}))


def run_peer(options, setup):
    command = [sys.executable, __file__, "--program", options.program, "--peer", json.dumps(setup), "--threads",
               str(options.threads), "--passes", str(options.passes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def run_own(options, setup):
    command = [options.program, setup["model"], setup["work"], "--dtype", setup["dtype"], "--repeats",
               str(options.passes), "--threads", str(options.threads), "--logits", setup["logits"]]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result["seconds"], result["tower_seconds"]


def compare(options, folder, shape, dtype, case):
    with tempfile.TemporaryDirectory() as place:
        words = options.tokens - (IMAGE_TOKENS + 2 if case == "picture" else 0)
        work = make_work(SHAPES[shape], 1, words, case == "picture", torch.Generator().manual_seed(1))
        tokens = work[0]["prompt"].numel()
        setup = dict(model=folder, dtype=dtype, work=os.path.join(place, "work.safetensors"))
        save_work(work, setup["work"])
        own, towers, theirs = [], [], []
        for _ in range(options.rounds):
            mine = dict(setup, logits=os.path.join(place, "own.safetensors"))
            other = dict(setup, logits=os.path.join(place, "peer.safetensors"))
            seconds, tower = run_own(options, mine)
            own += seconds
            towers += tower
            theirs += run_peer(options, other)
        a, b = load_file(mine["logits"])["logits"][0], load_file(other["logits"])["logits"][0]
        difference = ((a - b).abs().max() / b.abs().max()).item()
        if dtype == "float32" and difference > 1e-3:
            sys.exit(f"the logits differ by {difference:.2g} of the largest")
    row = dict(shape=shape, dtype=dtype, case=case, tokens=tokens, own=min(own), own_median=statistics.median(own),
               own_tower=min(towers), peer=min(theirs), peer_median=statistics.median(theirs), difference=difference)
    print(f"  {shape:<5} {dtype:<9} {case:<8} {tokens} tokens: own {tokens / row['own']:8.0f} tokens/s (median "
          f"{tokens / row['own_median']:.0f}, tower {row['own_tower'] * 1e3:.0f} ms)  transformers "
          f"{tokens / row['peer']:8.0f} ({tokens / row['peer_median']:.0f})  ratio {row['peer'] / row['own']:.2f}, "
          f"of medians {row['peer_median'] / row['own_median']:.2f}; logits differ by {difference:.1e}", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--shapes", default="0.1B,0.4B")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--cases", default="text,picture")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each, in turns")
    parser.add_argument("--passes", type=int, default=5, help="timed passes a process")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--force", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options)
        return
    if os.getloadavg()[0] > 0.3 and not options.force:
        raise SystemExit(f"the load is {os.getloadavg()[0]:.2f}; wait for an idle machine, or give --force")
    torch.set_num_threads(options.threads)
    machine = machine_line(options.threads)
    print(machine, flush=True)
    results = []
    for shape in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{shape}: {sum(p.numel() for p in make_model(SHAPES[shape], folder).parameters()):,} parameters",
                  flush=True)
            for dtype in options.dtypes.split(","):
                for case in options.cases.split(","):
                    results.append(compare(options, folder, shape, dtype, case))
    if options.json:
        options.json.write_text(json.dumps(dict(machine=machine, results=results), indent=1) + "\n")


if __name__ == "__main__":
    main()

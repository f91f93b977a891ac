"""Opening a checkpoint side by side with transformers' from_pretrained: seconds and peak memory.

    ninja -C build/release bench_load
    python tests/peers/load_speed.py --program build/release/tests/bench_load --work DIR [--shape 3B] [--dtype bfloat16]

A random bfloat16 checkpoint of Qwen2.5-VL-3B's dimensions (3.75 billion weights, 7.5 GB, in shards of 1 GB, of which one
is in memory at a time) is written into DIR once. Both open it in turns, A B A B ..., each in a process of its own whose
start and imports are not counted, with the page cache warm: the files are read once before each. The result has
--dtype, bfloat16 or float32. A load that maps files reads them later, so a second figure counts touching every page of
the weights, too. Peak memory is VmHWM of the process behind that; also without what the process held before the load.
One number a page is summed up on both sides and compared. Needs an idle machine: refuses above a load of 0.3 without
--force.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

SHAPES = {
    "3B": dict(text=dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
                         intermediate_size=11008, vocab_size=151936),
               vision=dict(depth=32, hidden_size=1280, num_heads=16, intermediate_size=3420,
                           fullatt_block_indexes=[7, 15, 23, 31]),
               sections=[16, 24, 24], shard=10**9),
    "tiny": dict(text=dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                           intermediate_size=1024, vocab_size=4096),
                 vision=dict(depth=2, hidden_size=128, num_heads=2, intermediate_size=256, fullatt_block_indexes=[1]),
                 sections=[8, 12, 12], shard=10**7),
}


def make_checkpoint(shape, folder):
    """Shards of random weights, one in memory at a time, under the names of the published checkpoints."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    if (folder / "complete").exists():
        return
    spec = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen2_5_VLConfig(
        text_config=dict(spec["text"], rope_parameters=dict(rope_type="default", rope_theta=1e6,
                                                            mrope_section=spec["sections"])),
        vision_config=dict(spec["vision"], out_hidden_size=spec["text"]["hidden_size"]),
        tie_word_embeddings=True, dtype="bfloat16")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    shapes = {}
    for name, parameter in model.named_parameters():  # the tied head is not among them
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        shapes[name] = parameter.shape
    torch.manual_seed(0)
    block = torch.empty(1 << 20, dtype=torch.bfloat16).normal_(0, 0.02)
    shards, filled = [{}], 0
    for name, size in shapes.items():
        nbytes = 2 * size.numel()
        if shards[-1] and filled + nbytes > spec["shard"]:
            shards.append({})
            filled = 0
        shards[-1][name] = size
        filled += nbytes
    weight_map, total = {}, 0
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, size in shard.items():
            count = size.numel()
            tensors[name] = block.repeat(count // len(block) + 1)[:count].clone().view(size)
            weight_map[name] = file
            total += 2 * count
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(f"  {file}", file=sys.stderr, flush=True)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n")
    (folder / "complete").write_text("")


def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def peer(options):
    """One load of the peer; prints one JSON line."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(options.threads)
    before, start = peak_memory(), time.perf_counter()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(options.peer, dtype=getattr(torch, options.dtype))
    load_seconds, start = time.perf_counter() - start, time.perf_counter()
    weights, checksum = 0, 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            weights += parameter.nbytes
            checksum += parameter.flatten()[::4096 // parameter.element_size()].double().sum().item()
    print(json.dumps({"load_seconds": load_seconds, "read_seconds": time.perf_counter() - start, "weights": weights,
                      "checksum": checksum, "memory_before": before, "peak_memory": peak_memory()}))


def warm_page_cache(folder):
    for file in folder.glob("*.safetensors"):
        with open(file, "rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def run(command, options):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(options.threads)})
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--shape", default="3B", choices=list(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--force", action="store_true", help="measure although the machine is busy")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options)
        return
    if not options.program or not options.work:
        parser.error("--program and --work are needed")
    folder = options.work / f"load-{options.shape}"
    make_checkpoint(options.shape, folder)
    if os.getloadavg()[0] > 0.3 and not options.force:
        raise SystemExit(f"the load is {os.getloadavg()[0]:.2f}; wait for an idle machine, or give --force")
    commands = {"thinkvg": [options.program, str(folder), "--dtype", options.dtype],
                "transformers": [sys.executable, __file__, "--peer", str(folder), "--dtype", options.dtype, "--threads",
                                 str(options.threads)]}
    runs = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            warm_page_cache(folder)
            runs[name].append(run(command, options))
    first = [values[0] for values in runs.values()]
    if first[0]["weights"] != first[1]["weights"]:
        sys.exit(f"not the same weights: {first[0]['weights']} and {first[1]['weights']} bytes")
    if abs(first[0]["checksum"] - first[1]["checksum"]) > 1e-6 * abs(first[1]["checksum"]) + 1e-3:
        sys.exit(f"not the same weights: checksums {first[0]['checksum']} and {first[1]['checksum']}")
    print(f"{options.shape}, {options.dtype}, {first[0]['weights'] / 1e9:.2f} GB of weights, page cache warm, "
          f"{options.threads} threads, load {os.getloadavg()[0]:.2f}, {options.rounds} rounds")
    print(f"{'':14}{'load':>16}{'load + touch':>16}{'peak memory':>14}{'added':>12}{'of weights':>12}")
    table = {}
    for name, values in runs.items():
        load = [value["load_seconds"] for value in values]
        ready = [value["load_seconds"] + value["read_seconds"] for value in values]
        peak = max(value["peak_memory"] for value in values)
        added = max(value["peak_memory"] - value["memory_before"] for value in values)
        table[name] = dict(load=min(load), load_median=statistics.median(load), ready=min(ready),
                           ready_median=statistics.median(ready), peak=peak, added=added)
        print(f"{name:14}{min(load):7.2f} / {statistics.median(load):4.2f} s{min(ready):7.2f} / "
              f"{statistics.median(ready):4.2f} s{peak / 1e6:11.0f} MB{added / 1e6:9.0f} MB"
              f"{added / first[0]['weights']:12.3f}")
    own, other = table["thinkvg"], table["transformers"]
    print(f"best / median of {options.rounds}; thinkvg needs {own['load'] / other['load']:.3f} of the time, "
          f"{own['ready'] / other['ready']:.3f} with every page touched, {own['peak'] / other['peak']:.2f} of the memory")
    if options.json:
        options.json.write_text(json.dumps(dict(table=table, runs=runs), indent=1) + "\n")


if __name__ == "__main__":
    main()

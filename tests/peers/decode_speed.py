"""Generation side by side with transformers: same weights, prompts, pictures, lengths; ends switched off.

    ninja -C build/release bench_generate
    python tests/peers/decode_speed.py --program build/release/tests/bench_generate [--shapes tiny,10M,0.1B,0.4B]
        [--dtypes float32,bfloat16,int8,int4]

Random Qwen2.5-VL models of each shape are written once and read by both. The greedy outputs are compared first (fp32
must be equal; for bf16 the share of equal tokens before the first difference is printed); then both are timed in turns,
A B A B ..., each on all cores, after a warm-up. Printed: the best and the median of the repeats, tokens/s of decoding
alone (the time of one token a completion taken off), of prompts, and of a rollout as GRPO does it (8 prompts with one
picture each, 8 completions). The rows int8 and int4 are this program's quantised weights, made of fp32 ones, against
transformers in the type that --quantized_peer names (take the faster one); they state how they change the
log-probabilities of the tokens that were drawn (mean difference) and the distributions (mean divergence from fp32's),
which on random weights says less than on trained ones. The machine line says what the cores and the memory gave in the
same run. Needs an idle machine: refuses above a load of 0.3 without --force.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SHAPES = {
    "tiny": dict(hidden=128, layers=4, heads=4, kv_heads=2, inner=256, vocab=768, vision=64, depth=2),
    "10M": dict(hidden=256, layers=8, heads=8, kv_heads=2, inner=1024, vocab=4096, vision=128, depth=4),
    "0.1B": dict(hidden=640, layers=14, heads=10, kv_heads=2, inner=2560, vocab=32000, vision=256, depth=6),
    "0.4B": dict(hidden=896, layers=24, heads=14, kv_heads=2, inner=4864, vocab=65536, vision=384, depth=8),
}
IMAGE, VISION_START, VISION_END = 5, 3, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTIZED = ("int8", "int4")


def config_of(shape):
    head_half = shape["hidden"] // shape["heads"] // 2
    section = [head_half - 2 * (head_half * 3 // 8), head_half * 3 // 8, head_half * 3 // 8]
    return Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=shape["vocab"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
            intermediate_size=shape["inner"], bos_token_id=None, eos_token_id=2, pad_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=section)),
        vision_config=dict(
            hidden_size=shape["vision"], depth=shape["depth"], num_heads=4, intermediate_size=2 * shape["vision"],
            out_hidden_size=shape["hidden"], fullatt_block_indexes=[shape["depth"] - 1]),
        image_token_id=IMAGE, video_token_id=6, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        tie_word_embeddings=True)


def make_model(shape, folder):
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config_of(shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wide enough that no two tokens are about equally likely
                parameter.normal_(0, (parameter.numel() / parameter.shape[0]) ** -0.5)
    model.save_pretrained(folder)
    return model


def make_work(shape, batch, prompt_tokens, pictures, generator):
    work = []
    for _ in range(batch):
        ids = torch.randint(10, shape["vocab"], (prompt_tokens,), generator=generator)
        item = {}
        if pictures:
            grid = torch.tensor([1, 24, 24])
            tokens = int(grid.prod()) // 4
            image = torch.tensor([VISION_START] + [IMAGE] * tokens + [VISION_END])
            ids = torch.cat([ids[:8], image, ids[8:]])
            item["grid"] = grid
            item["pixels"] = torch.randn((int(grid.prod()), 3 * 2 * 14 * 14), generator=generator)
        item["prompt"] = ids
        work.append(item)
    return work


def save_work(work, file):
    save_file({f"{name}_{i}": tensor for i, item in enumerate(work) for name, tensor in item.items()}, file)


def peer_inputs(work, completions, dtype):
    inputs = dict(input_ids=torch.stack([item["prompt"] for item in work]))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "pixels" in work[0]:
        inputs["pixel_values"] = torch.cat([item["pixels"] for item in work]).to(dtype)
        inputs["image_grid_thw"] = torch.stack([item["grid"] for item in work])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs


def peer_generate(model, inputs, new_tokens, completions, temperature):
    sampling = dict(do_sample=True, temperature=temperature, top_k=0) if temperature > 0 else dict(do_sample=False)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                                num_return_sequences=completions, suppress_tokens=[IMAGE, VISION_START, VISION_END],
                                use_cache=True, **sampling)
    return output[:, inputs["input_ids"].shape[1]:]


def seconds_of(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run_own(arguments, folder, work_file, dtype, new_tokens, completions, temperature, more=()):
    weights = ["--quantization", dtype] if dtype in QUANTIZED else ["--dtype", dtype]
    command = [arguments.program, folder, work_file, *weights, "--new_tokens", str(new_tokens),
               "--completions", str(completions), "--temperature", str(temperature), "--repeats", "1",
               "--threads", str(arguments.threads), *more]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def agreement(own, peer):
    """The share of tokens before the first difference."""
    same = total = 0
    for a, b in zip(own, peer):
        total += len(b)
        for x, y in zip(a, b):
            if x != y:
                break
            same += 1
    return same / total


def machine_line(threads):
    with open("/proc/cpuinfo") as file:
        flags = next(line for line in file if line.startswith("flags")).split()
    wanted = [flag for flag in flags if flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")]
    data = torch.ones(1 << 28)
    bandwidth = max(data.nbytes / seconds_of(lambda: data.sum()) for _ in range(5)) / 1e9
    a = torch.randn(2048, 2048)
    flops = max(2 * 2048**3 / seconds_of(lambda: a @ a) for _ in range(5)) / 1e9
    return (f"threads {threads}, load {os.getloadavg()[0]:.2f}, {' '.join(wanted)}, read {bandwidth:.1f} GB/s, "
            f"matmul {flops:.0f} GFLOP/s, torch {torch.__version__}")


def compare(arguments, name, model, folder, dtype, case):
    generator = torch.Generator().manual_seed(1)
    work = make_work(SHAPES[name], case["batch"], case["prompt"], case["pictures"], generator)
    inputs = peer_inputs(work, case["completions"], model.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        work_file = os.path.join(temporary, "work.safetensors")
        save_work(work, work_file)
        greedy = run_own(arguments, folder, work_file, dtype, case["new"], 1, 0.0, ["--change"])
        same = agreement(greedy["ids"], peer_generate(model, inputs, case["new"], 1, 0.0).tolist())
        if dtype == "float32" and same < 1:
            print(f"  OUTPUTS DIFFER: {same:.3f} of the tokens before the first difference are equal")
        temperature = 1.0 if case["completions"] > 1 else 0.0
        own, own_first, peer, peer_first = [], [], [], []
        peer_generate(model, inputs, min(4, case["new"]), case["completions"], temperature)
        for _ in range(arguments.repeats):
            times = run_own(arguments, folder, work_file, dtype, case["new"], case["completions"], temperature)
            own += times["seconds"]
            own_first += times["first_seconds"]
            peer_first.append(seconds_of(lambda: peer_generate(model, inputs, 1, case["completions"], temperature)))
            peer.append(seconds_of(
                lambda: peer_generate(model, inputs, case["new"], case["completions"], temperature)))
    rows = case["batch"] * case["completions"]

    def figures(whole, first):
        best, best_first = min(whole), min(first)
        return dict(seconds=best, median=statistics.median(whole), prefill=inputs["input_ids"].numel() / best_first,
                    decode=rows * (case["new"] - 1) / max(best - best_first, 1e-9))

    a, b = figures(own, own_first), figures(peer, peer_first)
    print(f"  {case['name']:<10} {dtype:<9} own {a['decode']:9.1f} tok/s  transformers {b['decode']:9.1f}  "
          f"ratio {a['decode'] / b['decode']:5.2f} | prefill {a['prefill']:8.0f} / {b['prefill']:8.0f} "
          f"({a['prefill'] / b['prefill']:.2f}) | whole {a['seconds']:.3f} / {b['seconds']:.3f} s "
          f"({b['seconds'] / a['seconds']:.2f}), median {a['median']:.3f} / {b['median']:.3f} | equal {same:.3f}",
          flush=True)
    result = dict(shape=name, dtype=dtype, case=case["name"], own=a, peer=b, equal=same)
    if dtype in QUANTIZED:
        result.update(peer_dtype=str(model.dtype), logprob_change=greedy["logprob_change"], kl=greedy["kl"])
        print(f"             log-probabilities change by {greedy['logprob_change']:.4f}, KL {greedy['kl']:.2e}",
              flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--shapes", default="tiny,10M,0.1B,0.4B")
    parser.add_argument("--dtypes", default="float32,bfloat16,int8,int4")
    parser.add_argument("--quantized_peer", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--cases", default="1,8,32,rollout")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    if os.getloadavg()[0] > 0.3 and not arguments.force:
        raise SystemExit(f"the load is {os.getloadavg()[0]:.2f}; wait for an idle machine, or give --force")
    torch.set_num_threads(arguments.threads)
    print(machine_line(arguments.threads), flush=True)
    results = []
    for name in arguments.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(SHAPES[name], folder)
            print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
            for dtype in arguments.dtypes.split(","):
                model.to(DTYPES[arguments.quantized_peer if dtype in QUANTIZED else dtype])
                for case in arguments.cases.split(","):
                    shared = dict(new=arguments.new_tokens, prompt=arguments.prompt_tokens)
                    if case == "rollout":
                        settings = dict(name="8x8", batch=8, completions=8, pictures=True, **shared)
                    else:
                        settings = dict(name=f"batch {case}", batch=int(case), completions=1, pictures=False, **shared)
                    results.append(compare(arguments, name, model, folder, dtype, settings))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(dict(machine=machine_line(arguments.threads), results=results), file, indent=1)


if __name__ == "__main__":
    main()

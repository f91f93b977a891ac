"""Supervised fine-tuning: tokens a second and peak memory of `thinkvg sft` against transformers (+ peft).

Usage: python tests/peers/sft_speed.py --program build/release/tools/thinkvg --work DIR [--shapes 10m,0.1b,0.4b]
       [--dtypes float32,bfloat16] [--methods full,lora] [--data ragged,even] [--rounds 5] [--steps 6] [--threads 2]
Both sides train the same weights on the same questions in the same batches (batch by batch the same rows, whatever their
order inside), from the same start; first the losses of the first step are compared, then the sides take turns, A B A B ..,
each run a process of its own. A run's first two steps are thrown away; the figure is tokens (prompt, picture and answer)
over the time of the others; minimum, median and maximum over the rounds are printed, and the largest resident memory.
The peer is given its best: pictures and ids are prepared before the clock starts (thinkvg's are read while it runs); SDPA;
fused AdamW; the output head on the answers' tokens alone where transformers allows (logits_to_keep); of its ways to batch
(one question at a time, padded batches sorted by length) the faster, found in a short trial; bf16 is pure bf16 without
masters or autocast, whichever of the two is faster, while thinkvg keeps fp32 masters. Nothing else may run beside: a load
above 0.3 is refused unless --busy is given.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

SHAPES = {
    # parameters about: decoder width, layers, inner, heads, kv heads, vocabulary; tower width, depth, inner, heads
    "tiny": dict(text=(64, 2, 128, 4, 2, 1024), vision=(32, 2, 64, 2), side=56),
    "10m": dict(text=(256, 8, 704, 4, 2, 8192), vision=(160, 4, 432, 4), side=112),
    "0.1b": dict(text=(640, 14, 1728, 10, 2, 32000), vision=(512, 8, 1376, 8), side=224),
    "0.4b": dict(text=(1024, 22, 2816, 16, 4, 64000), vision=(768, 12, 2048, 12), side=224),
}
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
WORDS = [f"w{i}" for i in range(400)]
LORA = dict(rank=16, alpha=32)
LR = 1e-4


def sections(head_dim):
    half = head_dim // 2
    return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def make(work, shape, dtype, data):
    """The model folder, the pictures and the rows; once."""
    import torch
    from PIL import Image
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    spec = SHAPES[shape]
    folder = work / f"{shape}-{dtype}"
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {piece: i for i, piece in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in MARKERS])
        width, layers, inner, heads, kv_heads, vocab = spec["text"]
        tower, depth, tower_inner, tower_heads = spec["vision"]
        config = Qwen2_5_VLConfig(
            text_config=dict(vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
                             num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=4096,
                             rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": sections(width // heads)},
                             bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
                             pad_token_id=tokenizer.token_to_id("<|endoftext|>")),
            vision_config=dict(depth=depth, hidden_size=tower, intermediate_size=tower_inner, num_heads=tower_heads,
                               patch_size=14, window_size=112, fullatt_block_indexes=[depth - 1],
                               out_hidden_size=width),
            tie_word_embeddings=True, image_token_id=tokenizer.token_to_id("<|image_pad|>"),
            vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
            vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"))
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, dtype))
        print(f"{shape}: {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)
        model.save_pretrained(folder)
        Qwen2VLImageProcessor(min_pixels=3136, max_pixels=1003520).save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))
        tokenizer.save(str(tokenizer_file))
    rows_file = work / f"{shape}-{data}.jsonl"
    if not rows_file.exists():
        rng, noise = random.Random(1), np.random.default_rng(1)
        pictures = work / f"{shape}-pictures"
        pictures.mkdir(exist_ok=True)
        rows = []
        for number in range(64):
            side = spec["side"]
            if not (pictures / f"{number}.png").exists():
                pixels = noise.integers(0, 256, (side // 7, side // 7, 3), dtype=np.uint8).repeat(7, 0).repeat(7, 1)
                Image.fromarray(pixels).save(pictures / f"{number}.png")
            # One byte is one token here. Ragged: from 40 to 900 bytes, most of them short, as answers are.
            length = 300 if data == "even" else int(40 * (900 / 40) ** rng.random())
            answer = ""
            while len(answer) < length:
                answer += rng.choice(WORDS) + " "
            rows.append({"id": str(number), "images": [f"{number}.png"], "question": "What is seen in the picture?",
                         "answer": answer[:length].strip(), "type": "open"})
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows_file, work / f"{shape}-pictures"


def run_thinkvg(options, model, rows, pictures, setup):
    out = options.work / "run"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    arguments = [options.program, "sft", "--model", model, "--data", rows, "--images", pictures, "--out", out,
                 "--batch_size", options.batch, "--run.steps", options.steps, "--dtype", setup["dtype"],
                 "--optimizer.lr", LR, "--optimizer.schedule", "constant", "--optimizer.warmup_ratio", 0,
                 "--run.num_threads", options.threads, "--run.tensorboard", "false", "--packing", "by_length",
                 "--run.micro_batch_tokens", options.micro_batch_tokens]
    if setup["method"] == "lora":
        arguments += ["--lora.rank", LORA["rank"], "--lora.alpha", LORA["alpha"]]
    subprocess.run([str(a) for a in arguments], check=True, stderr=subprocess.PIPE,
                   env=dict(os.environ, OMP_NUM_THREADS=str(options.threads)))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = lines[options.warmup:]
    return {"tokens_per_second": sum(l["num_tokens"] for l in timed) / sum(l["step_time"] for l in timed),
            "peak_memory": lines[-1]["peak_memory"], "first_loss": lines[0]["loss"], "losses": [l["loss"] for l in lines],
            "tokens": [l["num_tokens"] for l in lines]}


def peer(options):
    """One run of the peer, in a process of its own; prints one JSON line."""
    import torch
    from PIL import Image
    from tokenizers import Tokenizer
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
    from write_loss_curve import Stream, hash_key

    setup = json.loads(options.peer)
    torch.set_num_threads(options.threads)
    folder = pathlib.Path(setup["model"])
    dtype = getattr(torch, setup["dtype"])
    autocast = setup["way"].endswith("autocast")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32 if autocast else dtype,
                                                               attn_implementation="sdpa")
    if setup["method"] == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(
            task_type="CAUSAL_LM", r=LORA["rank"], lora_alpha=LORA["alpha"],
            target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    processor = Qwen2VLImageProcessor.from_pretrained(folder)
    image, pad = tokenizer.token_to_id("<|image_pad|>"), tokenizer.token_to_id("<|endoftext|>")
    samples = []
    for line in pathlib.Path(setup["rows"]).read_text().splitlines():
        row = json.loads(line)
        picture = Image.open(pathlib.Path(setup["pictures"]) / row["images"][0]).convert("RGB")
        processed = processor(images=[picture], return_tensors="pt")
        count = int(processed["image_grid_thw"].prod()) // 4
        prompt = ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
                  + "<|image_pad|>" * count + f"<|vision_end|>{row['question']}<|im_end|>\n<|im_start|>assistant\n")
        answer = f"<response><answer>{row['answer']}</answer></response><|im_end|>"
        ids = tokenizer.encode(prompt).ids
        answer_ids = tokenizer.encode(answer).ids
        samples.append((ids + answer_ids, len(answer_ids), processed["pixel_values"], processed["image_grid_thw"]))
    # The rows of each step, as thinkvg draws them (seed 0).
    rows, passes = len(samples), []
    for p in range(options.steps * options.batch // rows + 1):
        passes += Stream(hash_key("data order"), 0, p).shuffled(list(range(rows)))
    micro = 1 if setup["way"].startswith("single") else setup["micro"]

    def loss_of(part, num_targets):
        longest = max(len(s[0]) for s in part)
        keep = max(s[1] for s in part) + 1
        ids = torch.full((len(part), longest), pad)
        mask = torch.zeros((len(part), longest), dtype=torch.long)
        labels = torch.full((len(part), longest), -100)
        for i, (sample, count, _, _) in enumerate(part):  # padded on the left: answers end together
            ids[i, longest - len(sample):] = torch.tensor(sample)
            mask[i, longest - len(sample):] = 1
            labels[i, longest - count:] = torch.tensor(sample[-count:])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, attention_mask=mask, mm_token_type_ids=(ids == image).int(),
                           pixel_values=torch.cat([s[2] for s in part]),
                           image_grid_thw=torch.cat([s[3] for s in part]), logits_to_keep=keep).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1),
                                                 labels[:, -keep + 1:].flatten(), reduction="sum") / num_targets

    times, tokens, losses = [], [], []
    for step in range(options.steps):
        batch = [samples[i] for i in passes[step * options.batch:(step + 1) * options.batch]]
        start = time.perf_counter()
        batch.sort(key=lambda s: len(s[0]))
        num_targets = sum(s[1] for s in batch)
        loss = 0.0
        for i in range(0, len(batch), micro):
            part = loss_of(batch[i:i + micro], num_targets)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
        tokens.append(sum(len(s[0]) for s in batch))
        losses.append(loss)
    timed = slice(options.warmup, None)
    print(json.dumps({"tokens_per_second": sum(tokens[timed]) / sum(times[timed]), "first_loss": losses[0],
                      "losses": losses, "tokens": tokens,
                      "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run_peer(options, model, rows, pictures, setup, way, steps=None):
    description = dict(setup, model=str(model), rows=str(rows), pictures=str(pictures), way=way, micro=4)
    arguments = [sys.executable, __file__, "--peer", json.dumps(description), "--steps", str(steps or options.steps),
                 "--warmup", str(min(options.warmup, (steps or options.steps) - 1)), "--batch", str(options.batch),
                 "--threads", str(options.threads)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE,
                          env=dict(os.environ, OMP_NUM_THREADS=str(options.threads)))
    return json.loads(done.stdout.decode().splitlines()[-1])


def spread(values):
    return f"{min(values):,.0f} / {statistics.median(values):,.0f} / {max(values):,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--shapes", default="10m,0.1b,0.4b")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--data", default="ragged,even")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro_batch_tokens", type=int, default=4096)
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options)
        return
    if not options.busy and os.getloadavg()[0] > 0.3:
        sys.exit(f"the load is {os.getloadavg()[0]:.2f}: wait for an idle machine, or give --busy")
    options.work.mkdir(parents=True, exist_ok=True)
    with open("/proc/cpuinfo") as cpu:
        print(next(line.split(":")[1].strip() for line in cpu if line.startswith("model name")),
              f"{options.threads} threads, load {os.getloadavg()[0]:.2f}, steps {options.steps} of {options.batch}, "
              f"{options.warmup} not counted, {options.rounds} rounds")
    results = []
    for shape in options.shapes.split(","):
        for dtype in options.dtypes.split(","):
            for data in options.data.split(","):
                model, rows, pictures = make(options.work, shape, dtype, data)
                for method in options.methods.split(","):
                    setup = {"dtype": dtype, "method": method}
                    ways = ["single", "padded"] if dtype == "float32" else ["single", "padded", "single autocast"]
                    trial = {way: run_peer(options, model, rows, pictures, setup, way, steps=3) for way in ways}
                    way = max(trial, key=lambda w: trial[w]["tokens_per_second"])
                    ours, theirs = [], []
                    for _ in range(options.rounds):
                        ours.append(run_thinkvg(options, model, rows, pictures, setup))
                        theirs.append(run_peer(options, model, rows, pictures, setup, way))
                    if ours[0]["tokens"] != theirs[0]["tokens"]:
                        sys.exit(f"not the same batches: {ours[0]['tokens']} and {theirs[0]['tokens']} tokens")
                    close = 1e-3 if dtype == "float32" else 5e-2
                    if abs(ours[0]["first_loss"] - theirs[0]["first_loss"]) > close * theirs[0]["first_loss"]:
                        sys.exit(f"not the same loss: {ours[0]['first_loss']} and {theirs[0]['first_loss']}")
                    speed = [r["tokens_per_second"] for r in ours], [r["tokens_per_second"] for r in theirs]
                    memory = max(r["peak_memory"] for r in ours), max(r["peak_memory"] for r in theirs)
                    ratio = statistics.median(speed[0]) / statistics.median(speed[1])
                    print(f"{shape} {dtype} {method} {data}: thinkvg {spread(speed[0])} tokens/s, "
                          f"{memory[0] / 2**20:,.0f} MiB; transformers ({way}) {spread(speed[1])}, "
                          f"{memory[1] / 2**20:,.0f} MiB; {ratio:.2f} times the speed, "
                          f"{memory[0] / memory[1]:.2f} times the memory; first loss {ours[0]['first_loss']:.4f}, "
                          f"{theirs[0]['first_loss']:.4f}", flush=True)
                    results.append({"shape": shape, "data": data, "way": way, **setup, "thinkvg": ours, "peer": theirs})
    (options.work / "sft_speed.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes tests/data/loss_curve/FAMILY: a tiny model, a few pictures and questions, and the losses of 20 training steps.

Usage: python tests/parity/write_loss_curve.py [--out tests/data/loss_curve] [--only FAMILY]
A plain loop: transformers (and peft for LoRA), torch.optim.AdamW, clip_grad_norm_, one question at a time in fp32, the
loss summed over the answers' tokens and divided by their number in the step. tests/train/loss_curve_parity_test.cc runs
`thinkvg sft` on the same folder with the settings that expected.json names and compares the curves. What both must
agree on beforehand is written here a second time: the order of the questions and the start of the adapters (Philox
random numbers), the chat markup, the answers' text, the schedule. Written with torch 2.11, transformers 5.23, peft 0.21,
tokenizers 0.23. A further family is one more entry of FAMILIES, and of the test's list.
"""

import argparse
import json
import math
import pathlib
import random
import shutil

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

STEPS, BATCH, SEED = 20, 4, 3
OPTIMIZER = dict(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.05, grad_clip=1.0, schedule="cosine",
                 warmup_ratio=0.1, min_lr_ratio=0.1)
LORA = dict(rank=4, alpha=8)
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
REGIONS = ["left lung", "right lung", "cardiac silhouette", "left apical zone", "spine"]
FINDINGS = ["an opacity", "no effusion", "a nodule", "clear margins", "an enlarged border"]
MASK = (1 << 64) - 1


# ---- thinkvg's random numbers (src/core/random.cc)


def mix(value):
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_key(text):
    value = len(text)
    for byte in text.encode():
        value = mix(value ^ byte)
    return value


class Stream:
    def __init__(self, *key):
        low, high = 0x243F6A8885A308D3, 0x13198A2E03707344
        for part in key:
            low = mix(low ^ part)
            high = mix((high + mix(part ^ 0xA4093822299F31D0)) & MASK)
        low = mix(low ^ len(key))
        self.key, self.stream, self.position = (low & 0xFFFFFFFF, low >> 32), (high & 0xFFFFFFFF, high >> 32), 0

    def u32(self):
        index = self.position // 4
        counter = [index & 0xFFFFFFFF, index >> 32, *self.stream]
        key = list(self.key)
        for _ in range(10):
            a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
            counter = [(b >> 32) ^ counter[1] ^ key[0], b & 0xFFFFFFFF, (a >> 32) ^ counter[3] ^ key[1],
                       a & 0xFFFFFFFF]
            key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
        lane = self.position % 4
        self.position += 1
        return counter[lane]

    def u64(self):
        low = self.u32()
        return low | (self.u32() << 32)

    def uniform(self):
        return (self.u64() >> 11) * 2.0**-53

    def shuffled(self, values):
        for i in range(len(values), 1, -1):
            limit = MASK - MASK % i
            value = self.u64()
            while value >= limit:
                value = self.u64()
            j = value % i
            values[i - 1], values[j] = values[j], values[i - 1]
        return values


def order_of(size):
    rows = []
    passes = [Stream(hash_key("data order"), SEED, p).shuffled(list(range(size)))
              for p in range(STEPS * BATCH // size + 1)]
    for i in range(STEPS * BATCH):
        rows.append(passes[i // size][i % size])
    return [rows[step * BATCH:(step + 1) * BATCH] for step in range(STEPS)]


def learning_rate(step):
    warmup = math.ceil(OPTIMIZER["warmup_ratio"] * STEPS)
    if step < warmup:
        return OPTIMIZER["lr"] * (step + 1) / warmup
    shape = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
    return OPTIMIZER["lr"] * (OPTIMIZER["min_lr_ratio"] + (1 - OPTIMIZER["min_lr_ratio"]) * shape)


# ---- pictures and questions


def write_data(folder):
    rng = random.Random(7)
    noise = np.random.default_rng(7)
    sizes = [(32, 24), (24, 32), (40, 16), (16, 16)]  # width, height: multiples of 8, which the processor keeps
    rows = []
    (folder / "pictures").mkdir(parents=True)
    for number in range(6):
        width, height = sizes[number % len(sizes)]
        pixels = noise.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        for k in range(4):
            region, finding = rng.choice(REGIONS), rng.choice(FINDINGS)
            x, y = rng.randrange(0, width - 8), rng.randrange(0, height - 8)
            box = [x, y, x + rng.randrange(4, 8), y + rng.randrange(4, 8)]
            row = {"id": f"{number}-{k}", "images": [f"{number}.png"], "frame": "original"}
            if k == 0:
                row |= {"question": f"What does the {region} show?", "answer": f"It shows {finding}.", "type": "open"}
            elif k == 1:
                row |= {"question": f"Is there {finding}?", "answer": rng.choice(["yes", "no"]), "type": "closed"}
            else:
                row |= {"question": "Which region is it?", "choices": [f"{c}: {r}" for c, r in zip("ABCDE", REGIONS)],
                        "answer": rng.choice("ABCDE"), "type": "single_choice"}
            if k != 1:
                row |= {"think": f"The {region} is looked at. " * rng.randrange(1, 4) + f"It has {finding}.",
                        "boxes": [{"name": region, "box": box}]}
            rows.append(row)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def question_of(row):
    return "\n".join([row["question"], *row.get("choices", [])])


def answer_of(row):
    text = f"<think>{row['think']}</think>" if "think" in row else ""
    text += f"<response><answer>{row['answer']}</answer>"
    if "boxes" in row:
        boxes = "".join(f"<ref>{b['name']}</ref><box>[{', '.join(map(str, b['box']))}]</box>" for b in row["boxes"])
        text += f"<location>{boxes}</location>"
    return text + "</response>"


def write_tokenizer(folder, rows):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                                                   use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator([question_of(row) + answer_of(row) for row in rows], trainer)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in MARKERS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
         "add_bos_token": False}, indent=1) + "\n")
    return tokenizer


# ---- families


class Qwen25Vl:
    """Qwen2.5-VL: patches of 4 pixels, 2 x 2 of them a token."""

    patch, merge = 4, 2

    def make(self, tokenizer):
        text = dict(vocab_size=340, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=512, rope_theta=1e4,
                    rope_scaling={"type": "mrope", "mrope_section": [2, 2, 2]},
                    bos_token_id=None, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
                    pad_token_id=tokenizer.token_to_id("<|endoftext|>"))
        vision = dict(depth=2, hidden_size=32, intermediate_size=48, num_heads=2, patch_size=self.patch, window_size=16,
                      fullatt_block_indexes=[1], out_hidden_size=48)
        config = Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True,
            image_token_id=tokenizer.token_to_id("<|image_pad|>"),
            vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
            vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"))
        return Qwen2_5_VLForConditionalGeneration(config)

    def load(self, folder):
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def processor(self):
        return Qwen2VLImageProcessor(patch_size=self.patch, merge_size=self.merge, temporal_patch_size=2, min_pixels=64,
                                     max_pixels=4096)

    def markup(self, row, num_tokens):
        """Qwen2-VL's chat template around one turn: the prompt, and what is learned behind it."""
        prompt = ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
                  + "<|image_pad|>" * num_tokens + f"<|vision_end|>{question_of(row)}<|im_end|>\n"
                  "<|im_start|>assistant\n")
        return prompt, answer_of(row) + "<|im_end|>"

    def inputs(self, row, folder, tokenizer):
        picture = Image.open(folder / "pictures" / row["images"][0]).convert("RGB")
        processed = self.processor()(images=[picture], return_tensors="pt")
        grid = processed["image_grid_thw"][0].tolist()
        assert (grid[2] * self.patch, grid[1] * self.patch) == picture.size, "boxes would have to be scaled"
        prompt, answer = self.markup(row, grid[1] * grid[2] // self.merge**2)
        prompt_ids, answer_ids = tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids
        ids = torch.tensor([prompt_ids + answer_ids])
        image = tokenizer.token_to_id("<|image_pad|>")
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == image).int(),
                "pixel_values": processed["pixel_values"], "image_grid_thw": processed["image_grid_thw"]}, len(answer_ids)

    lora_targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

    def registered(self, peft_name):
        """thinkvg's name of the module that a parameter of peft's belongs to."""
        name = peft_name.removeprefix("base_model.model.").split(".lora_")[0]
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


FAMILIES = {"qwen2_5_vl": Qwen25Vl()}


# ---- the loop


def curve(model, samples, order):
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": OPTIMIZER["weight_decay"]},
                                   {"params": plain, "weight_decay": 0.0}], lr=OPTIMIZER["lr"],
                                  betas=(OPTIMIZER["beta1"], OPTIMIZER["beta2"]), eps=OPTIMIZER["eps"])
    losses, norms = [], []
    for step in range(STEPS):
        batch = [samples[i] for i in order[step]]
        num_targets = sum(count for _, count in batch)
        loss = 0.0
        for inputs, count in batch:
            logits = model(**inputs).logits[0, -count - 1:-1]
            part = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, -count:], reduction="sum")
            (part / num_targets).backward()
            loss += part.item() / num_targets
        norms.append(torch.nn.utils.clip_grad_norm_(decayed + plain, OPTIMIZER["grad_clip"]).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return {"loss": losses, "grad_norm": norms}


def with_adapters(model, family):
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=LORA["rank"], lora_alpha=LORA["alpha"],
                                             target_modules=family.lora_targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
            if "lora_A" in name:
                stream = Stream(hash_key("lora"), SEED, hash_key(family.registered(name)))
                bound = 1 / math.sqrt(parameter.shape[1])
                values = [-bound + (bound + bound) * stream.uniform() for _ in range(parameter.numel())]
                parameter.copy_(torch.tensor(values, dtype=torch.float64).view(parameter.shape).float())
    return model


def write(name, folder):
    family = FAMILIES[name]
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(1)
    rows = write_data(folder)
    tokenizer = write_tokenizer(folder / "model", rows)
    model = family.make(tokenizer)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.0 / (parameter[0].numel() ** 0.5))
    model.to(torch.bfloat16).save_pretrained(folder / "model")  # half the size; both sides train in fp32
    family.processor().save_pretrained(folder / "model")
    samples = [family.inputs(row, folder, tokenizer) for row in rows]
    order = order_of(len(rows))
    expected = {"family": name, "steps": STEPS, "batch_size": BATCH, "seed": SEED, "optimizer": OPTIMIZER, "lora": LORA,
                "order": order, "lengths": [inputs["input_ids"].shape[1] for inputs, _ in samples]}
    expected["full"] = curve(family.load(folder / "model").train(), samples, order)
    expected["adapters"] = curve(with_adapters(family.load(folder / "model"), family).train(), samples, order)
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    for kind in ("full", "adapters"):
        print(name, kind, [round(value, 4) for value in expected[kind]["loss"]])
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "data" / "loss_curve")
    parser.add_argument("--only", choices=FAMILIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in FAMILIES:
        if arguments.only in (None, name):
            write(name, arguments.out / name)


if __name__ == "__main__":
    main()

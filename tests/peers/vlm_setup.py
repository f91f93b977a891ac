"""A model, pictures and questions that thinkvg and transformers both open, for grpo_speed.py and eval_speed.py."""

import json
import pathlib
import subprocess

import numpy as np
from PIL import Image

WORDS = ("is there an opacity in the left lung or a small effusion near the heart and does the right side look normal "
         "on this frontal view of the chest").split()

# Decoder, tower and picture; the tokenizer has 768 pieces.
SHAPES = {
    "tiny": {"language": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
                          "intermediate_size": 128, "mrope_section": [2, 3, 3]},
             "vision": {"hidden_size": 64, "depth": 2, "num_heads": 4, "intermediate_size": 96,
                        "full_attention_blocks": [1]},
             "image_size": 112},
    "11M": {"language": {"hidden_size": 320, "num_layers": 6, "num_heads": 5, "num_kv_heads": 5,
                         "intermediate_size": 1152, "mrope_section": [8, 12, 12]},
            "vision": {"hidden_size": 128, "depth": 4, "num_heads": 4, "intermediate_size": 384,
                       "full_attention_blocks": [1, 3]},
            "image_size": 336},
    "0.1B": {"language": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4,
                          "intermediate_size": 2560, "mrope_section": [8, 12, 12]},
             "vision": {"hidden_size": 256, "depth": 8, "num_heads": 4, "intermediate_size": 768,
                        "full_attention_blocks": [3, 7]},
             "image_size": 224},
}


def make_processor(model, image_size):
    """The folder's tokenizer and template with transformers' processor, for pictures of image_size x image_size."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    pixels = image_size * image_size
    pictures = Qwen2VLImageProcessor(size={"shortest_edge": pixels, "longest_edge": pixels})
    return Qwen2_5_VLProcessor(pictures, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template)


def make_pictures(folder, count, side):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if (folder / f"{i}.png").exists():
            continue
        noise = np.random.default_rng(i).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side)).save(folder / f"{i}.png")


def write_questions(file, num_questions, num_pictures, num_words):
    """Questions of num_words words; the first words tell them apart."""
    lines = []
    for i in range(num_questions):
        words = [WORDS[(i * 7 + k * (1 + i % 5)) % len(WORDS)] for k in range(num_words)]
        lines.append(json.dumps({"id": f"q{i}", "image": f"{i % num_pictures}.png", "question": " ".join(words) + "?",
                                 "type": "closed", "think": "it is " + " ".join(WORDS[:8]) + " .", "answer": "yes",
                                 "boxes": [{"name": "left lung", "box": [5, 6, 50, 60]}], "frame": "original"}))
    file.write_text("\n".join(lines) + "\n")


def prompt_length(processor, question, image_size):
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    picture = Image.new("RGB", (image_size, image_size))
    return len(processor(text=[text], images=[picture])["input_ids"][0])


def make_workplace(program, work, shape, num_questions, prompt_tokens):
    """Model folder, pictures and questions of about prompt_tokens tokens. Nothing ends a completion but its length."""
    work = pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    side = SHAPES[shape]["image_size"]
    num_pictures = min(num_questions, 64)
    make_pictures(work / "images", num_pictures, side)
    questions, model = work / "questions.jsonl", work / "model"
    write_questions(questions, num_questions, num_pictures, 40)
    if not (model / "config.json").exists():
        config = work / "init.yaml"
        config.write_text(json.dumps(SHAPES[shape] | {"vocab_size": 400, "data": str(questions), "out": str(model)}))
        subprocess.run([program, "init", "--config", str(config)], check=True)
        # Image tokens are never drawn, so that neither side ends early.
        generation = json.loads((model / "generation_config.json").read_text())
        generation["eos_token_id"] = json.loads((model / "config.json").read_text())["image_token_id"]
        (model / "generation_config.json").write_text(json.dumps(generation))
    processor = make_processor(model, side)
    num_words = 40
    for _ in range(4):
        write_questions(questions, num_questions, num_pictures, num_words)
        rows = [json.loads(line) for line in questions.read_text().splitlines()[:20]]
        mean = np.mean([prompt_length(processor, row["question"], side) for row in rows])
        num_words = max(1, round(num_words + prompt_tokens - mean))
    return {"model": model, "images": work / "images", "questions": questions, "image_size": side,
            "prompt_tokens": float(mean)}

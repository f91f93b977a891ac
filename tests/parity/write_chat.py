"""Writes tests/data/chat/cases.json: conversations as Hugging Face writes and tokenizes them.

Usage: python tests/parity/write_chat.py
Needs transformers, trl (which ships the families' chat templates) and tests/data/tokenizers. Written with
transformers 5.23.0 and trl 1.16. Text: apply_chat_template(); picture markers are then repeated as the family's processor
does it. llava_v1 and llava_med have no template: their text and chunks follow the released conversation code.
"""

import json
import pathlib
import random

import trl
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
TEMPLATES = pathlib.Path(trl.__file__).parent / "chat_templates"
# llava-hf/llava-1.5-7b-hf, chat_template.json
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
THINKVG = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SYSTEM_V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
             "and polite answers to the user's questions.")
IMAGE_ID = 3  # of pictures where the tokenizer has no image token

# name, tokenizer, template, what the template writes for a picture, how the processor writes n image tokens
FAMILIES = [
    ("thinkvg", "qwen", THINKVG, "<|image_pad|>", lambda n: "<|image_pad|>" * n),
    ("qwen2_vl", "qwen", (TEMPLATES / "qwen2_5_vl.jinja").read_text(), "<|image_pad|>", lambda n: "<|image_pad|>" * n),
    ("qwen3_vl", "qwen", (TEMPLATES / "qwen3_vl.jinja").read_text(), "<|image_pad|>", lambda n: "<|image_pad|>" * n),
    ("llava_vicuna", "llama", VICUNA, "<image>", lambda n: "<image>" * n),
    ("llava_mistral", "llama", (TEMPLATES / "llava_next.jinja").read_text(), "<image>", lambda n: "<image>" * n),
    ("llava_vicuna", "mistral", VICUNA, "<image>", lambda n: "<image>" * n),
    ("gemma3", "gemma", (TEMPLATES / "gemma3.jinja").read_text(), "<start_of_image>",
     lambda n: "\n\n<start_of_image>" + "<image_soft_token>" * n + "<end_of_image>\n\n"),
]
EXTRA_TOKENS = {"gemma": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"], "mistral": ["<image>"]}
QUESTIONS = ["Is there any opacity?", " leading and trailing ", "two\nlines\n", "A: yes, B: no <|im_end|></s> [INST]",
             "肺炎はありますか 🫁", "naïve  café\t", "Where is it? [51, 190, 140, 281]", "USER: x ASSISTANT: y", "x"]
ANSWERS = ["yes", "<think>The left lung (region [1, 2, 3, 4]) shows it.</think><answer>B</answer>", "No.  ", "あります",
           "It is\n\nsevere.", "A, C", "é"]


def text_part(text):
    return {"type": "text", "text": text}


def conversations():
    rng = random.Random(5)
    for number in range(36):
        messages, counts = [], []
        if number % 3 == 0:
            messages.append({"role": "system", "content": [text_part(rng.choice(["Be brief.", "Du bist Ärztin.\n", " x "]))]})
        turns = 1 + number % 3
        for turn in range(turns):
            content = []
            for _ in range(rng.choice([0, 1, 1, 2]) if turn == 0 else rng.choice([0, 0, 1])):
                content.append({"type": "image"})
                counts.append(rng.randint(1, 4))
            content.append(text_part(rng.choice(QUESTIONS)))
            if number % 7 == 0:
                content.append(text_part(rng.choice(QUESTIONS)))
            messages.append({"role": "user", "content": content})
            if turn + 1 < turns or number % 2:
                messages.append({"role": "assistant", "content": [text_part(rng.choice(ANSWERS))]})
        yield messages, counts, messages[-1]["role"] == "user"


def texts_of(message):
    return [part["text"] for part in message["content"] if part["type"] == "text"]


def learned_text(name, messages):
    out = ""
    for message in messages:
        if message["role"] != "assistant":
            continue
        text = "".join(texts_of(message))
        out += {"llava_vicuna": " " + text, "llava_mistral": " " + text + "</s>", "llava_v1": " " + text + "</s>",
                "llava_med": " " + text + " </s>", "gemma3": text.strip() + "<end_of_turn>"}.get(name,
                                                                                                text + "<|im_end|>")
    return out


def released_chunks(name, messages, prompt):
    """Text as LLaVA's Conversation class writes it, cut at pictures."""
    system = "".join(texts_of(messages[0])) if messages[0]["role"] == "system" else ""
    turns = [m for m in messages if m["role"] != "system"]
    text = ""
    for number, message in enumerate(turns):
        images = "".join("<IMAGE>\n" for part in message["content"] if part["type"] == "image")
        content = images + "".join(texts_of(message))
        if name == "llava_med":
            if number == 0 and system:
                content = f"<<SYS>>\n{system}\n<</SYS>>\n\n" + content
            text += f"[INST] {content} [/INST]" if message["role"] == "user" else f" {content} </s>"
        else:
            if number == 0:
                text += (system or SYSTEM_V1) + " "
            text += f"USER: {content} " if message["role"] == "user" else f"ASSISTANT: {content}</s>"
    if name == "llava_v1" and prompt:
        text += "ASSISTANT:"
    return text.split("<IMAGE>")


def case(name, tokenizer, messages, counts, prompt, text, ids, image_id=None):
    return {"image_id": image_id, "template": name, "tokenizer": tokenizer, "messages": [
        {"role": m["role"], "parts": [part.get("text") for part in m["content"]]} for m in messages],
            "num_tokens": counts, "add_generation_prompt": prompt, "text": text, "ids": ids,
            "learned": learned_text(name, messages)}


def main():
    cases = []
    for name, folder, template, marker, expand in FAMILIES:
        backend = Tokenizer.from_file(str(DATA / "tokenizers" / folder / "tokenizer.json"))
        backend.add_special_tokens(EXTRA_TOKENS.get(folder, []))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>" if name == "gemma3" else None)
        for messages, counts, prompt in conversations():
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                                 add_generation_prompt=prompt)
            pieces = text.split(marker)
            assert len(pieces) == len(counts) + 1, (name, text)
            expanded = pieces[0] + "".join(expand(n) + piece for n, piece in zip(counts, pieces[1:]))
            ids = backend.encode(expanded, add_special_tokens=name != "gemma3").ids
            # This folder has no image token of its own.
            image_id = backend.token_to_id("<image>") if folder == "mistral" else None
            cases.append(case(name, folder, messages, counts, prompt, text, ids, image_id))
    backend = Tokenizer.from_file(str(DATA / "tokenizers/llama/tokenizer.json"))
    for name in ("llava_v1", "llava_med"):
        for messages, counts, prompt in conversations():
            chunks = released_chunks(name, messages, prompt)
            ids = [1] + backend.encode(chunks[0], add_special_tokens=False).ids
            for n, chunk in zip(counts, chunks[1:]):
                ids += [IMAGE_ID] * n + backend.encode(chunk, add_special_tokens=False).ids
            cases.append(case(name, "llama", messages, counts, prompt, "<image>".join(chunks), ids, IMAGE_ID))
    (DATA / "tokenizers/gemma/tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<bos>", "extra_special_tokens": EXTRA_TOKENS["gemma"]}, indent=1) + "\n")
    out = DATA / "chat/cases.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()

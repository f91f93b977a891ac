"""Questions a second: `thinkvg eval` against a loop over transformers' generate().

Usage: python tests/peers/eval_speed.py --program build/release/tools/thinkvg --work DIR [--shape 11M]
           [--questions 3960] [--batch 32] [--prompt_tokens 200] [--tokens 64] [--threads 2]
       .. --model DIR --data FILE.jsonl --images ROOT [--image_size N]     a model and set of one's own

Both answer the same questions about the same pictures with the same weights in float32, greedily, and write the answers
down. With the made model every answer has the full length; with one's own it ends where the model ends it. The peer
reads pictures with Pillow, pads a batch on the left, sorts nothing, and keeps key-value caches as generate() does;
give it the --batch that suits it best. Ours is the whole command, loading and scoring included; the peer's loading is
not counted. Prints a table for the README, and the share of answers that are the same text (weights that were never
trained give near ties, which rounding decides).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import vlm_setup


def run_thinkvg(options, place):
    out = options.work / "eval"
    shutil.rmtree(out, ignore_errors=True)
    command = [options.program, "eval", "--model", place["model"], "--data", place["questions"], "--images",
               place["images"], "--out", out, "--sampling.max_new_tokens", options.tokens, "--num_threads",
               options.threads, "--baselines", "false", "--metrics.resamples", 10, "--limit", options.questions, "--json"]
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    whole = time.perf_counter() - start
    document = json.loads((out / "metrics.json").read_text())
    answers = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {"questions": len(answers), "tokens": document["new_tokens"], "seconds": whole,
            "answers": [answer["response"] for answer in answers]}


def run_peer(options, place):
    command = [sys.executable, __file__, "--peer", json.dumps({k: str(v) for k, v in place.items()}), "--program",
               options.program, "--work", str(options.work), "--batch", str(options.batch), "--tokens",
               str(options.tokens), "--threads", str(options.threads), "--questions", str(options.questions)]
    if options.model:
        command += ["--model", options.model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(options.threads)})
    return json.loads(done.stdout.splitlines()[-1])


def peer(options):
    import torch
    from PIL import Image
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(options.threads)
    place = json.loads(options.peer)
    processor = vlm_setup.make_processor(place["model"], int(place["image_size"]))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(place["model"], dtype=torch.float32).eval()
    rows = [json.loads(line) for line in pathlib.Path(place["questions"]).read_text().splitlines()]
    rows = rows[: options.questions]
    lengths = {} if options.model else {"min_new_tokens": options.tokens}
    num_tokens, answers = 0, []
    start = time.perf_counter()
    for begin in range(0, len(rows), options.batch):
        part = rows[begin : begin + options.batch]
        texts, pictures = [], []
        for row in part:
            question = "\n".join([row["question"], *row.get("choices", [])])
            content = [{"type": "image"}, {"type": "text", "text": question}]
            texts.append(processor.apply_chat_template([{"role": "user", "content": content}],
                                                       add_generation_prompt=True, tokenize=False))
            name = row.get("image") or row["images"][0]
            with Image.open(pathlib.Path(place["images"]) / name) as picture:
                pictures.append(picture.convert("RGB"))
        inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=options.tokens, **lengths)
        new = output[:, inputs["input_ids"].size(1) :]
        num_tokens += int((new != processor.tokenizer.pad_token_id).sum()) if options.model else new.numel()
        answers += processor.batch_decode(new, skip_special_tokens=True)
    print(json.dumps({"questions": len(answers), "tokens": num_tokens, "seconds": time.perf_counter() - start,
                      "answers": answers}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=vlm_setup.SHAPES, default="11M")
    parser.add_argument("--questions", type=int, default=3960)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--images")
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    if options.model:
        place = {"model": options.model, "images": options.images, "questions": options.data,
                 "image_size": options.image_size}
    else:
        place = vlm_setup.make_workplace(options.program, options.work / options.shape.replace(".", "_"), options.shape,
                                         options.questions, options.prompt_tokens)
    ours = run_thinkvg(options, place)
    theirs = run_peer(options, place)
    same = sum(a == b for a, b in zip(ours.pop("answers"), theirs.pop("answers"))) / max(1, ours["questions"])
    rates = {name: side["questions"] / side["seconds"] for name, side in (("thinkvg", ours), ("transformers", theirs))}
    if options.json:
        return print(json.dumps({"thinkvg": ours, "transformers": theirs, "questions_per_second": rates,
                                 "same_answers": same}))
    model = options.model or f"{options.shape}, {place['prompt_tokens']:.0f} prompt tokens"
    print(f"| {ours['questions']:,} questions, {model}, {options.threads} threads | questions/s | new tokens/s |")
    print("|---|---|---|")
    for name, side in (("`thinkvg eval`", ours), (f"transformers, batch {options.batch}", theirs)):
        print(f"| {name} | {side['questions'] / side['seconds']:.2f} | {side['tokens'] / side['seconds']:.0f} |")
    print(f"\n{rates['thinkvg'] / rates['transformers']:.1f} times as fast; {100 * same:.1f} % of the answers are the same")


if __name__ == "__main__":
    main()

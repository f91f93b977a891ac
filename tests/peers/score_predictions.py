"""Seconds to score predictions without a model: `thinkvg score` against a script with numpy, scipy and sacrebleu.

  python tests/peers/score_predictions.py --program build/release/tools/thinkvg --work DIR [--predictions 100000]
                                          [--threads 2] [--rounds 3] [--json]

Both read the same parquet file of questions and the same JSON lines of predictions, made here, and compute A-score,
V-score (Hungarian), token F1, ROUGE-L, BLEU-4, the parse rate, and 2,000 bootstrap resamples by picture. `thinkvg score`
computes its other metrics, question types and regions on top. Both are whole processes, imports included; the best of
the rounds counts. Prints a table for the README, and ends with 1 where the two disagree by more than rounding.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "the heart is enlarged with a small left pleural effusion and opacity in right lower lung zone normal".split()
NAMES = ["right lung", "left lung", "right lower lung zone", "left lower lung zone", "cardiac silhouette", "spine"]
TYPES = ["open_ended_questions", "closed_ended_questions", "single_choice_questions", "multi_choice_questions"]


def boxes(random, count):
    corner = random.integers(0, 200, (count, 2))
    return np.concatenate([corner, corner + random.integers(20, 130, (count, 2))], axis=1)


def answer_of(random, kind):
    if kind == 0:
        return " ".join(random.choice(WORDS, int(random.integers(4, 14))))
    if kind == 1:
        return str(random.choice(["yes", "no"]))
    if kind == 2:
        return str(random.choice(list("ABCD")))
    return ", ".join(sorted(random.choice(list("ABCD"), int(random.integers(1, 4)), replace=False)))


def response_of(answer, rows, names):
    places = "".join(f"<ref>{n}</ref><box>[{b[0]}, {b[1]}, {b[2]}, {b[3]}]</box>" for n, b in zip(names, rows))
    return f"<response><answer>{answer}</answer><location>{places}</location></response>"


def make(count, folder):
    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    columns = collections.defaultdict(list)
    with open(folder / "predictions.jsonl", "w") as out:
        for row in range(count):
            picture, kind = row // 9, row % 4
            patient = 10000000 + picture
            rows = boxes(random, int(random.integers(1, 4)))
            names = random.choice(NAMES, len(rows))
            answer = answer_of(random, kind)
            think = f"The {names[0]} (region {rows[0].tolist()}) shows what is asked. The answer is {answer}."
            question = "What is seen?"
            if kind > 1:
                question += " <choices>: [A: opacity, B: nodule, C: effusion, D: nothing]"
            columns["image_path"].append(f"/p10/p{patient}/s{picture}/{picture}.jpg")
            columns["question"].append(question)
            columns["question_type"].append(TYPES[kind])
            columns["thinkVG"].append(think)
            columns["response"].append(response_of(answer, rows, names))
            columns["split"].append("test")
            said = answer if random.random() < 0.6 else answer_of(random, kind)
            moved = np.clip(rows + random.integers(-15, 16, rows.shape), 0, 336)
            text = f"<think>{think}</think>" + response_of(said, moved, names)
            if random.random() < 0.03:
                text = text[:-20]
            out.write(json.dumps({"id": str(row), "response": text}) + "\n")
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), folder / "questions.parquet")


ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)
BOX = re.compile(r"<box>\[([^\]]*)\]</box>")


def parse(text):
    complete = text.rstrip().endswith("</response>")
    answer = ANSWER.search(text)
    rows = [[float(v) for v in quad.split(",")] for quad in BOX.findall(text[text.find("<response>"):])]
    return complete and answer is not None, answer.group(1).strip() if answer else "", np.array(rows).reshape(-1, 4)


def iou_table(a, b):
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    size = lambda x: (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])
    return common / (size(a)[:, None] + size(b)[None] - common)


def words(text):
    return [w for w in re.sub(r"[^a-z0-9]+", " ", text.lower()).split() if w not in ("a", "an", "the")]


def score(folder):
    from rouge_score import rouge_scorer
    from sacrebleu.metrics import BLEU
    from scipy.optimize import linear_sum_assignment

    table = pq.read_table(folder / "questions.parquet").to_pydict()
    responses = {}
    with open(folder / "predictions.jsonl") as lines:
        for line in lines:
            row = json.loads(line)
            responses[row["id"]] = row["response"]
    rouge = rouge_scorer.RougeScorer(["rougeL"])
    sums, said, meant = collections.defaultdict(lambda: np.zeros(10)), [], []
    for row, (reference, kind, image) in enumerate(zip(table["response"], table["question_type"], table["image_path"])):
        _, gold, gold_boxes = parse(reference)
        ok, answer, found = parse(responses[str(row)])
        values = np.zeros(10)
        values[8:10] = [ok, 1]
        if kind != TYPES[0]:
            letters = lambda text: sorted(set(re.findall(r"\b[A-D]\b", text))) or text.lower().strip(".")
            values[0:2] = [ok and letters(answer) == letters(gold), 1]
        else:
            text = answer if ok else ""
            said.append(text)
            meant.append(gold)
            both = collections.Counter(words(text)) & collections.Counter(words(gold))
            common = sum(both.values())
            f1 = 2 * common / (len(words(text)) + len(words(gold))) if common else 0.0
            values[4:8] = [f1, rouge.score(gold, text)["rougeL"].fmeasure, 0, 1]
        v = 0.0
        if ok and len(found):
            overlap = iou_table(gold_boxes, found)
            v = overlap[linear_sum_assignment(overlap, maximize=True)].sum() / max(overlap.shape)
        values[2:4] = [v, 1]
        sums[image] += values
    bleu = BLEU().corpus_score(said, [meant]).score / 100
    data = np.array([sums[name] for name in sorted(sums)])
    random = np.random.default_rng(0)
    draws = np.array([data[random.integers(0, len(data), len(data))].sum(axis=0) for _ in range(2000)])
    total = data.sum(axis=0)
    figures = {"bleu_4": {"value": bleu}}
    for name, part, whole in (("a_score", 0, 1), ("v_score", 2, 3), ("token_f1", 4, 7), ("rouge_l", 5, 7),
                              ("parse_rate", 8, 9)):
        figures[name] = {"value": total[part] / total[whole],
                         "interval": np.percentile(draws[:, part] / draws[:, whole], [2.5, 97.5]).tolist()}
    print(json.dumps(figures))


def run(command, threads):
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    return time.perf_counter() - start, json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--predictions", type=int, default=100000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return score(options.work)
    if not options.program:
        parser.error("--program names the built thinkvg")
    folder = options.work / str(options.predictions)
    make(options.predictions, folder)
    ours = [options.program, "score", "--data", folder / "questions.parquet", "--predictions",
            folder / "predictions.jsonl", "--baselines", "false", "--json"]
    theirs = [sys.executable, __file__, "--work", folder, "--peer"]
    rounds = [(run(ours, options.threads), run(theirs, options.threads)) for _ in range(options.rounds)]
    seconds = [min(pair[side][0] for pair in rounds) for side in (0, 1)]
    mine, other = rounds[0][0][1], rounds[0][1][1]
    table, differ = {}, []
    for name, figure in other.items():
        table[name] = {"thinkvg": mine[name]["overall"], "peer": figure["value"]}
        if abs(mine[name]["overall"] - figure["value"]) > 1e-9:
            differ.append(name)
    result = {"predictions": options.predictions, "threads": options.threads,
              "seconds": {"thinkvg": seconds[0], "peer": seconds[1]}, "figures": table, "differ": differ}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"| {options.predictions:,} predictions, {options.threads} threads | seconds |\n|---|---|")
        print(f"| `thinkvg score` | {seconds[0]:.2f} |\n| numpy, scipy, sacrebleu, rouge-score | {seconds[1]:.2f} |\n")
        print(f"{seconds[1] / seconds[0]:.1f} times as fast")
        for name, pair in table.items():
            print(f"  {name:10} {pair['thinkvg']:.6f} {pair['peer']:.6f}{'  DIFFERS' if name in differ else ''}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes tests/data/eval/text_metrics.json: BLEU of sacrebleu and ROUGE-L of rouge-score over answers and awkward text.

Usage: python tests/parity/write_text_metrics.py [output file]
"""

import json
import pathlib
import random
import sys

import sacrebleu
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

WORDS = """the a of in is and no left right upper lower lung zone opacity effusion heart size enlarged normal clear with
small large bilateral pleural 2.5 3,000 cm x-ray non-specific patient's (mild) "nodule" A: B, C. and/or 50% <0.5 10-12 ...
é naïve 肺 炎 ١٢ &amp; &lt;b&gt; a.b 1.2.3 ,, -5 5- U.S. e.g., [1, 2] {x} tag</answer> \u00a0 \u2009x K İstanbul ß""".split(" ")
EDGE = ["", " ", ".", "\n", "a", "A", "yes", "No.", "the the the the", "a b c d e", "a\u00a0b\u3000c", "\t x \r\n y -\nz",
        "&quot;x&quot; &amp;amp; <skipped>y", "1-2-3", "...", ".5", "5.", "5.5", "a.5", "5.a", ",a,", "\u212a \u0130x", "é.é",
        "肺炎 肺 炎。", "😀 a 😀", "\x1c\x1fa\x85b", "~!@#$%^&*()_+", "a" * 300, "x y " * 60, "- - -", "0--1"]
VARIANTS = [("13a", "exp", False), ("13a", "floor", False), ("13a", "add-k", True), ("13a", "none", False),
            ("char", "exp", False), ("none", "exp", False)]


def text(draw: random.Random) -> str:
    if draw.random() < 0.2:
        return draw.choice(EDGE)
    return draw.choice(["", " "]) + " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 18)))


def changed(draw: random.Random, reference: str) -> str:
    words = reference.split(" ")
    for _ in range(draw.randint(0, 4)):
        if words and draw.random() < 0.5:
            words.pop(draw.randrange(len(words)))
        else:
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
    return " ".join(words)


def bleu_of(pairs, variant, order, effective) -> float:
    tokenize, smooth, lowercase = variant
    metric = BLEU(tokenize=tokenize, smooth_method=smooth, lowercase=lowercase, max_ngram_order=order,
                  effective_order=effective)
    if effective:
        return metric.sentence_score(pairs[0][0], [pairs[0][1]]).score / 100
    return metric.corpus_score([p for p, _ in pairs], [[r for _, r in pairs]]).score / 100


def main() -> None:
    here = pathlib.Path(__file__).resolve().parent
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "data" / "eval" / "text_metrics.json"
    draw = random.Random(11)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pairs = [(a, b) for a in EDGE for b in draw.sample(EDGE, 3)] + [(a, a) for a in EDGE]
    for _ in range(160):
        reference = text(draw)
        pairs.append((changed(draw, reference) if draw.random() < 0.8 else text(draw), reference))
    # Lower-casing beyond ASCII is not offered: those variants are taken over ASCII text only.
    segments = []
    for index, (predicted, reference) in enumerate(pairs):
        variant = VARIANTS[index % len(VARIANTS)]
        if variant[2] and not (predicted + reference).isascii():
            variant = VARIANTS[0]
        tokenize = BLEU(tokenize=variant[0], lowercase=variant[2])
        segments.append({"predicted": predicted, "reference": reference, "variant": list(variant),
                         "tokens": " ".join(tokenize._preprocess_segment(predicted).split()),
                         "bleu": [bleu_of([(predicted, reference)], variant, n, True) for n in (1, 2, 3, 4)],
                         "rouge_l": scorer.score(reference, predicted)["rougeL"].fmeasure})
    corpora = []
    for size in (1, 2, 5, 20, 60):
        chosen = draw.sample(range(len(pairs)), size)
        for variant in VARIANTS:
            keep = [i for i in chosen if not variant[2] or (pairs[i][0] + pairs[i][1]).isascii()]
            if keep:
                corpora.append({"segments": keep, "variant": list(variant),
                                "bleu": [bleu_of([pairs[i] for i in keep], variant, n, False) for n in (1, 2, 3, 4)]})
    lines = ",\n".join(json.dumps(s, separators=(",", ":")) for s in segments)
    rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in corpora)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text('{"source": "sacrebleu %s, rouge-score 0.1.2 without stemmer",\n"segments": [\n%s\n],\n"corpora": [\n%s\n]}\n'
                   % (sacrebleu.__version__, lines, rows))


if __name__ == "__main__":
    main()

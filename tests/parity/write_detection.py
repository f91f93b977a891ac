"""Writes tests/data/eval/detection.json (AP of pycocotools) and tests/data/grounding/fusion.json (ensemble-boxes).

Usage: python tests/parity/write_detection.py [data folder]
"""

import contextlib
import io
import json
import pathlib
import sys
import warnings

import numpy as np
from ensemble_boxes import weighted_boxes_fusion
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def boxes(random, count, grid):
    corner = random.integers(0, 80, (count, 2))
    size = random.integers(4, 60, (count, 2))
    out = np.concatenate([corner, corner + size], axis=1).astype(float)
    return out if grid else np.round(out + random.random((count, 4)) * 0.9, 2)


def coco_case(random, images, labels, kind):
    gt, dt, layout = [], [], []
    for image in range(images):
        reference = boxes(random, int(random.integers(0, 4)), kind == "ties")
        names = random.integers(0, labels, len(reference))
        predicted, predicted_names = [], []
        for box, name in zip(reference, names):
            if random.random() < 0.7:
                moved = box + random.integers(-6, 7, 4)
                predicted.append(moved if moved[2] > moved[0] and moved[3] > moved[1] else box)
                predicted_names.append(int(name) if random.random() < 0.8 else int(random.integers(0, labels)))
        extra = boxes(random, int(random.integers(0, 3)), kind == "ties")
        predicted += list(extra)
        predicted_names += [int(n) for n in random.integers(0, labels, len(extra))]
        scores = random.random(len(predicted))
        if kind == "ties":
            scores = np.round(scores, 1)
        if kind == "ones":
            scores = np.ones(len(predicted))
        scores = np.round(scores, 4)
        layout.append({"reference": [[*map(float, b), int(n)] for b, n in zip(reference, names)],
                       "predicted": [[*map(float, b), n, float(s)]
                                     for b, n, s in zip(predicted, predicted_names, scores)]})
        for b, n in zip(reference, names):
            gt.append({"id": len(gt) + 1, "image_id": image, "category_id": int(n), "iscrowd": 0,
                       "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "area": (b[2] - b[0]) * (b[3] - b[1])})
        for b, n, s in zip(predicted, predicted_names, scores):
            dt.append({"image_id": image, "category_id": n, "score": float(s),
                       "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in range(images)], "annotations": gt,
                        "categories": [{"id": i} for i in range(labels)]}
        coco.createIndex()
        result = COCOeval(coco, coco.loadRes(dt) if dt else COCO(), "bbox")
        if not dt:
            result.cocoDt.dataset = {"images": coco.dataset["images"], "annotations": [], "categories": []}
            result.cocoDt.createIndex()
        result.evaluate()
        result.accumulate()
        result.summarize()
    precision = result.eval["precision"][:, :, :, 0, 2]  # thresholds, recall steps, labels
    by_label = {}
    for k in range(labels):
        if (precision[:, :, k] > -1).all():
            by_label[str(k)] = float(precision[:, :, k].mean())
    return {"kind": kind, "images": layout, "ap": float(result.stats[0]), "ap50": float(result.stats[1]),
            "ap75": float(result.stats[2]), "recall": float(result.stats[8]), "by_label": by_label}


def fusion_case(random, sources, kind, threshold):
    findings = boxes(random, int(random.integers(1, 5)), False) / 150
    lists, scores, labels = [], [], []
    for _ in range(sources):
        chosen = [f for f in findings if random.random() < 0.7]
        own = [np.clip(f + random.normal(size=4) * 0.02, 0, 1) for f in chosen]
        own = [np.round(b, 4) for b in own if b[2] > b[0] + 0.01 and b[3] > b[1] + 0.01]
        lists.append([b.tolist() for b in own])
        scores.append([1.0 if kind == "readers" else round(float(random.uniform(0.05, 1)), 4) for _ in own])
        labels.append([int(random.integers(0, 2)) for _ in own])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused, fused_scores, fused_labels = weighted_boxes_fusion(lists, scores, labels, iou_thr=threshold,
                                                                  skip_box_thr=0.0, conf_type="avg")
    return {"kind": kind, "threshold": threshold, "boxes": lists, "scores": scores, "labels": labels,
            "fused": [[*map(float, b), int(n), float(s)] for b, s, n in zip(fused, fused_scores, fused_labels)]}


def main() -> None:
    here = pathlib.Path(__file__).resolve().parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "data"
    random = np.random.default_rng(3)
    cases = [coco_case(random, images, labels, kind) for kind in ("real", "ties", "ones")
             for images, labels in ((1, 1), (3, 2), (12, 3), (30, 5))]
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / "detection.json").write_text(
        '{"source": "pycocotools COCOeval, bbox", "cases": [\n'
        + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]}\n")
    fusions = [fusion_case(random, sources, kind, threshold) for kind in ("readers", "models")
               for sources in (1, 2, 3, 5) for threshold in (0.3, 0.55) for _ in range(3)]
    (folder / "grounding" / "fusion.json").write_text(
        '{"source": "ensemble-boxes 1.0.9 weighted_boxes_fusion, conf_type avg", "cases": [\n'
        + ",\n".join(json.dumps(c, separators=(",", ":")) for c in fusions) + "\n]}\n")


if __name__ == "__main__":
    main()

"""Writes tests/data/grounding/assignment.json: score matrices and their largest totals as scipy finds them.

Usage: python tests/parity/write_assignment.py [output file]
"""

import json
import pathlib
import sys

import numpy as np
from scipy.optimize import linear_sum_assignment


def main() -> None:
    here = pathlib.Path(__file__).resolve().parent
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "data" / "grounding" / "assignment.json"
    random = np.random.default_rng(7)
    cases = []
    shapes = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (3, 7), (7, 3), (8, 8), (12, 5), (5, 12), (15, 15), (20, 9)]
    for rows, columns in shapes:
        for kind in ("real", "sparse", "ties", "negative"):
            score = random.random((rows, columns))
            if kind == "sparse":
                score = np.where(score < 0.6, 0.0, score)
            elif kind == "ties":
                score = np.floor(score * 3) / 4
            elif kind == "negative":
                score = score * 200 - 100
            score = np.round(score, 4)
            picked = linear_sum_assignment(score, maximize=True)
            cases.append({"kind": kind, "rows": rows, "columns": columns, "score": score.flatten().tolist(),
                          "total": float(score[picked].sum())})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    out.write_text('{"source": "scipy.optimize.linear_sum_assignment", "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()

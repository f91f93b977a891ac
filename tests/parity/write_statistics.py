"""Writes tests/data/eval/statistics.json: McNemar's test and Holm's adjustment of statsmodels, quantiles of scipy, numpy.

Usage: python tests/parity/write_statistics.py [output file]
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import statsmodels
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests


def main() -> None:
    here = pathlib.Path(__file__).resolve().parent
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "data" / "eval" / "statistics.json"
    warnings.simplefilter("ignore")
    random = np.random.default_rng(5)
    tables = []
    counts = [(0, 1), (1, 0), (1, 1), (5, 5), (0, 10), (3, 17), (40, 70), (500, 500), (1200, 900), (2, 4000), (9000, 9100)]
    counts += [tuple(int(v) for v in random.integers(0, 60, 2)) for _ in range(25)]
    for first, second in counts:
        if first + second == 0:
            continue
        exact = mcnemar([[10, first], [second, 10]], exact=True)
        chi = mcnemar([[10, first], [second, 10]], exact=False, correction=True)
        tables.append({"first": first, "second": second, "exact": [float(exact.statistic), float(exact.pvalue)],
                       "chi_square": [float(chi.statistic), float(chi.pvalue)]})
    holm = []
    for size in (1, 2, 3, 7, 20):
        for kind in ("uniform", "small", "ties", "edge"):
            p = random.random(size)
            if kind == "small":
                p = p**6
            elif kind == "ties":
                p = np.round(p, 1)
            elif kind == "edge":
                p = random.choice([0.0, 1.0, 0.01], size)
            holm.append({"p": p.tolist(), "adjusted": multipletests(p, method="holm")[1].tolist()})
    probabilities = [1e-12, 1e-4, 0.025, 0.2, 0.5, 0.8, 0.975, 0.999, 1 - 1e-9]
    quantiles = []
    for size in (1, 2, 5, 40):
        values = np.round(random.normal(size=size), 2)
        for share in (0.0, 0.025, 0.5, 0.9, 1.0):
            quantiles.append({"values": values.tolist(), "share": share,
                              "quantile": float(np.percentile(values, share * 100))})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"source": f"statsmodels {statsmodels.__version__}, scipy, numpy", "mcnemar": tables,
                               "holm": holm, "normal": [[p, float(stats.norm.ppf(p))] for p in probabilities],
                               "quantiles": quantiles}, indent=0, separators=(",", ":")).replace("\n", "") + "\n")


if __name__ == "__main__":
    main()

"""Reference values of tests/report from statsmodels: McNemar, Holm, TOST of paired differences, power of a paired t.

Written once; statsmodels is not needed to run the tests. To write them anew:

    pip install statsmodels
    python tests/references/statsmodels_paired.py
"""

import json
from pathlib import Path

import numpy as np

MCNEMAR = [(1, 7), (7, 1), (5, 5), (0, 4), (12, 30), (130, 98), (0, 0), (1, 0)]
HOLM = [[0.01, 0.04, 0.03], [0.5, 0.5, 0.5], [0.0004, 0.2, 0.011, 0.011, 0.9], [0.03]]
DIFFERENCES = [[-0.012, -0.001, -0.006], [0.004, -0.003, 0.001, 0.006, -0.010], [-0.019, -0.024], [0.018, 0.023, 0.021]]
POWER = [(3, 0.0, 0.02, 0.01), (5, -0.008, 0.02, 0.01), (10, -0.015, 0.02, 0.008), (30, 0.01, 0.02, 0.02)]


def main() -> None:
    """Compute and store."""
    # In here: collecting the tests imports this file, where statsmodels need not be.
    import statsmodels
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower
    from statsmodels.stats.weightstats import ttost_paired

    found = {
        "statsmodels": statsmodels.__version__,
        "mcnemar_exact": [[*bc, mcnemar([[3, bc[0]], [bc[1], 3]], exact=True).pvalue] for bc in MCNEMAR if sum(bc)],
        "holm": [[p, multipletests(p, method="holm")[1].tolist()] for p in HOLM],
        "tost": [[d, ttost_paired(np.array(d), np.zeros(len(d)), -0.02, 0.02)[0]] for d in DIFFERENCES],
        # One-sided: power of the test against a difference of -margin or less.
        "power": [
            [n, d, m, sd, TTestPower().power((d + m) / sd, n, 0.05, alternative="larger")] for n, d, m, sd in POWER
        ],
    }
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps(found, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Mean φ(r, r) of pairs of layers by how far apart they are, beside chance: layers.csv → by_distance.csv beside it.

python studies/roberta-mnli/by_distance.py results/roberta-mnli/right results/roberta-mnli/left
"""

import sys
from pathlib import Path

import pandas as pd

from rankprobe.linalg.subspace import overlap_moments


def by_distance(layers: pd.DataFrame) -> pd.DataFrame:
    """A row a kind and distance; the interval is that of the mean of so many pairs of random subspaces."""
    pairs = layers[layers["layer_x"] > layers["layer_y"]].assign(distance=lambda t: t["layer_x"] - t["layer_y"])
    rows = []
    for (kind, distance), part in pairs.groupby(["kind", "distance"]):
        mean, variance = overlap_moments(int(part["dim"].iloc[0]), int(part["r"].iloc[0]), int(part["r"].iloc[0]))
        half = 1.96 * (variance / len(part)) ** 0.5
        rows.append(
            {
                "kind": kind,
                "distance": distance,
                "pairs": len(part),
                "phi_mean": part["phi"].mean(),
                "phi_min": part["phi"].min(),
                "phi_max": part["phi"].max(),
                "random_mean": mean,
                "random_low": mean - half,
                "random_high": mean + half,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        table = by_distance(pd.read_csv(folder / "layers.csv"))
        table.to_csv(folder / "by_distance.csv", index=False)
        print(folder.name)
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))

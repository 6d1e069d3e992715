"""Write rankprobe/experiment/learning_rates.toml from what the study measured: for each method and r the lowest loss.

The loss on the tuning rows rather than the accuracy: with 1,500 rows an accuracy has a standard error of one point, and
neighbouring rates often differ by less. Where the two disagree, this prints it.

    python studies/learning-rates/choose.py
"""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "results" / "learning-rates" / "tables" / "runs.csv"
CHOSEN = ROOT / "rankprobe" / "experiment" / "learning_rates.toml"
HEADER = """\
# Peak learning rates, written by studies/learning-rates/choose.py from results/learning-rates/tables/runs.csv: the
# lowest loss on docmatch's tuning rows. LoRA's are for alpha = 2r on q,v; an r between takes the nearest in log2 r.
"""


def choose(runs: pd.DataFrame) -> pd.DataFrame:
    """The run of the lowest loss for each method and r, in the order method, r."""
    ok = runs[runs["status"] == "ok"].copy()
    ok["r"] = ok["r"].astype("Int64")
    best = ok.loc[ok.groupby(["method", "r"], dropna=False)["loss"].idxmin()]
    return best.sort_values(["method", "r"])[["method", "r", "lr", "loss", "accuracy"]]


def as_toml(chosen: pd.DataFrame) -> str:
    """The table as learning_rates.toml holds it."""
    plain = [f"{row.method} = {row.lr:g}\n" for row in chosen.itertuples() if row.method != "lora"]
    lora = [f"{row.r} = {row.lr:g}\n" for row in chosen.itertuples() if row.method == "lora"]
    return HEADER + "".join(plain) + "\n[lora]\n" + "".join(lora)


if __name__ == "__main__":
    runs = pd.read_csv(MEASURED)
    chosen = choose(runs)
    print(chosen.to_string(index=False))
    for row in chosen.itertuples():
        same = runs[(runs["method"] == row.method) & ((runs["r"] == row.r) if row.method == "lora" else True)]
        better = same.loc[same["accuracy"].idxmax()]
        if better["lr"] != row.lr:
            print(f"{row.method} r={row.r}: by accuracy it would be {better['lr']:g} ({better['accuracy']:.4f})")
    CHOSEN.write_text(as_toml(chosen), encoding="utf-8")

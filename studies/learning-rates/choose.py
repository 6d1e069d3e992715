"""Write rankprobe/experiment/learning_rates.toml from what the tuning studies measured: for each method and size the
rate of the lowest loss.

The loss on the tuning rows rather than the accuracy: with 1,500 rows an accuracy has a standard error of one point, and
neighbouring rates often differ by less. Where the two disagree, this prints it.

    python studies/learning-rates/choose.py
"""

from pathlib import Path

import pandas as pd

from rankprobe.experiment.spec import SIZES

ROOT = Path(__file__).resolve().parents[2]
MEASURED = [ROOT / "results" / name / "tables" / "runs.csv" for name in (
    "learning-rates", "learning-rates-methods", "learning-rates-methods-wider"
)]
CHOSEN = ROOT / "rankprobe" / "experiment" / "learning_rates.toml"
HEADER = """\
# Peak learning rates, written by studies/learning-rates/choose.py from what the studies learning-rates and
# learning-rates-methods measured: the lowest loss on docmatch's tuning rows. By size where a method has one (LoRA's r
# at alpha = 2r, by targets); a size between takes the nearest in log2.
"""


def measured() -> pd.DataFrame:
    """The studies' runs, one a row; ``size`` is r, or what the method's size is."""
    runs = pd.concat([pd.read_csv(file) for file in MEASURED if file.is_file()], ignore_index=True)
    sizes = runs.reindex(columns=["r", *SIZES]).bfill(axis=1).iloc[:, 0]
    return runs.assign(size=sizes.astype("Int64"))


def choose(runs: pd.DataFrame) -> pd.DataFrame:
    """The run of the lowest loss for each method, targets and size, in that order."""
    ok = runs[runs["status"] == "ok"]
    best = ok.loc[ok.groupby(["method", "targets", "size"], dropna=False)["loss"].idxmin()]
    return best.sort_values(["method", "targets", "size"])[["method", "targets", "size", "lr", "loss", "accuracy"]]


def as_toml(chosen: pd.DataFrame) -> str:
    """The table as learning_rates.toml holds it: single rates first, then a table a method."""
    single, tables = "", ""
    for (method, targets), rows in chosen.groupby(["method", "targets"], dropna=False, sort=False):
        if rows["size"].isna().all():
            single += f"{method} = {rows['lr'].iloc[0]:g}\n"
            continue
        tables += f"\n[{method}]\n" if pd.isna(targets) else f'\n[{method}."{targets}"]\n'
        tables += "".join(f"{row.size} = {row.lr:g}\n" for row in rows.itertuples())
    return HEADER + single + tables


if __name__ == "__main__":
    runs = measured()
    chosen = choose(runs)
    print(chosen.to_string(index=False))
    for row in chosen.itertuples():
        keys = {"method": row.method, "targets": row.targets, "size": row.size}
        of = (runs[name].isna() if pd.isna(value) else runs[name] == value for name, value in keys.items())
        better = runs.loc[pd.concat(list(of), axis=1).all(axis=1)].sort_values("accuracy").iloc[-1]
        if better["lr"] != row.lr:
            print(f"{row.method} {row.size}: by accuracy it would be {better['lr']:g} ({better['accuracy']:.4f})")
    CHOSEN.write_text(as_toml(chosen), encoding="utf-8")

"""Train a source run, allocate two budgets by its sensitivity, train with the patterns and with one r, say which won.

One command does all of it; stopped, the same command goes on. ``--smoke`` does it at a size that says nothing, in a few
minutes, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from rankprobe.analysis.sensitivity import Z
from rankprobe.experiment.store import load_runs, write_table
from rankprobe.report.comparison import configurations, difference, finished_ok, mean_score
from rankprobe.weights.rank_pattern import canonical_pattern

HERE = Path(__file__).parent
BUDGETS = (8, 2)  # one r for all of equal size
KINDS = {"sensitivity": "rank_pattern.json", "energy": "rank_pattern_energy.json"}
_SMOKE = {"task": '"docmatch-smoke"', "train_size": "160", "eval_size": "120", "epochs": "1", "seeds": "3"}


def main() -> None:
    """Run every step that is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", type=Path)
    parser.add_argument("--out", default=None, type=Path, help="default: results/allocated-ranks")
    parser.add_argument("--threads", default=1, type=int, help="of a run")
    parser.add_argument("--jobs", default=1, type=int, help="runs at once, in the sweep of step 3")
    parser.add_argument("--rows", default=1024, type=int, help="tuning rows that sensitivity is measured on")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    out = options.out or Path("results") / ("allocated-ranks-smoke" if options.smoke else "allocated-ranks")
    study = shrunk(out / "study") if options.smoke else HERE
    place = ["--runs", str(options.runs), "--threads", str(options.threads)]
    rankprobe("sweep", str(study / "source.toml"), "--out", str(out / "source"), *place)
    source = json.loads((out / "source" / "plan.json").read_text(encoding="utf-8"))["runs"][0]
    (study / "patterns").mkdir(exist_ok=True)
    for r in BUDGETS:
        folder = out / "allocation"  # one folder: the second budget takes what was measured for the first
        rows = 128 if options.smoke else options.rows
        rankprobe("allocate", source, "--budget-r", str(r), "--rows", str(rows), "--out", str(folder), *place)
        if not options.smoke:
            require_gain(folder / "check.csv")
        for kind, name in KINDS.items():
            shutil.copy(folder / name, study / "patterns" / f"qv-r{r}-{kind}.json")
        kept = out / f"allocation-r{r}"
        kept.mkdir(exist_ok=True)
        for name in ("allocation.csv", "allocation.json", "check.csv", "lora_config.json", "ranks.svg", "ranks.png"):
            shutil.copy(folder / name, kept / name)
    # --threads is what the jobs divide among them.
    jobs = ["--runs", str(options.runs), "--threads", str(options.threads * options.jobs), "--jobs", str(options.jobs)]
    rankprobe("sweep", str(study / "study.toml"), "--out", str(out / "sweep"), "--drop-weights", *jobs)
    table = verdicts(out / "sweep", options.runs, study / "patterns")
    write_table(out / "verdict.csv", table)
    print(table.to_string(index=False))


def rankprobe(*arguments: str) -> None:
    """Run a command; what is finished it does not do again."""
    print("rankprobe", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "rankprobe.cli.main", *arguments], check=True)


def require_gain(check: Path) -> None:
    """End here where the source run's updates are worth no more than noise: so would be the ranks."""
    nothing = pd.read_csv(check).set_index("pattern").loc["nothing kept"]
    if nothing["increase"] < Z * nothing["se"]:
        sys.exit(f"The source run has learned nothing: without its updates the loss grows by {nothing['increase']:.2g} "
                 f"± {nothing['se']:.2g} (s.e.). Give source.toml another seed.")  # fmt: skip


def verdicts(sweep: Path, store: Path, patterns: Path) -> pd.DataFrame:
    """Paired differences inside each size: allocated against one r, and against what energy alone gives.

    Parameters
    ----------
    sweep : Path
        The sweep's output folder, for its plan.
    store : Path
        The run store.
    patterns : Path
    """
    plan = json.loads((sweep / "plan.json").read_text(encoding="utf-8"))
    kinds: dict[tuple, list[str]] = {}
    for r in BUDGETS:
        for kind in KINDS:
            pattern = canonical_pattern(json.loads((patterns / f"qv-r{r}-{kind}.json").read_text(encoding="utf-8")))
            kinds.setdefault((r, pattern), []).append(kind)
    groups = {}
    for group in configurations(load_runs(store / run_id for run_id in plan["runs"])):
        r, pattern, ok = group[0]["spec"]["r"], group[0]["spec"].get("rank_pattern"), finished_ok(group)
        # Both kinds of allocation may give the same ranks, which are trained once.
        for name in ["one r"] if pattern is None else kinds[r, canonical_pattern(pattern)]:
            if ok:
                groups[r, name] = ok
    rows = []
    for r in BUDGETS:
        for a, b in (("sensitivity", "one r"), ("energy", "one r"), ("sensitivity", "energy")):
            gap = difference(groups.get((r, a), []), groups.get((r, b), []))
            if gap is None or groups[r, a] is groups[r, b]:
                continue
            won = a if gap.low > 0 else b if gap.high < 0 else "not told apart"
            left, right = groups[r, a], groups[r, b]
            rows.append({"parameters": left[0]["params"]["method"], "a": a, "b": b,
                         "accuracy_a": mean_score(left).estimate, "accuracy_b": mean_score(right).estimate,
                         "difference": gap.estimate, "ci_low": gap.low, "ci_high": gap.high, "ci_method": gap.method,
                         "won": won})  # fmt: skip
    return pd.DataFrame(rows)


def shrunk(folder: Path) -> Path:
    """Copies of the study files at a size that only shows that everything works."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("source.toml", "study.toml"):
        text = (HERE / name).read_text(encoding="utf-8")
        for key, value in _SMOKE.items():
            text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()

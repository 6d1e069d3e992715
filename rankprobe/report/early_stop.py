"""When runs ended that rows held out of their training may stop."""

from __future__ import annotations

# What a spec says of it; most runs have none of it.
EARLY_STOP = ("patience", "tuning_size")


def early_stop_columns(run: dict) -> dict:
    """runs.csv's columns of one run; none where it may not end early, so that other tables are without them."""
    if run["spec"].get("patience") is None:
        return {}
    found = run.get("early_stop") or {}
    return {
        "patience": run["spec"]["patience"],
        "n_tuning": found.get("n_rows"),
        "epochs_trained": len(found.get("held_out_losses") or []),
        "best_epoch": found.get("best_epoch"),
    }


def early_stop_words(runs: list[dict]) -> str:
    """How runs were stopped, for people; empty where none may be."""
    found = [run for run in runs if run.get("early_stop") and run["status"] == "ok"]
    if not found:
        return ""
    best = sorted(run["early_stop"]["best_epoch"] for run in found)
    epochs, patience = (found[0]["spec"][name] for name in ("epochs", "patience"))
    early = sum(len(run["early_stop"]["held_out_losses"]) < epochs for run in found)
    row = "an epoch" if patience == 1 else f"{patience} epochs in a row"
    which = f"epoch {best[0]}" if best[0] == best[-1] else f"between epochs {best[0]} and {best[-1]}"
    return (
        f"a run ends after {row} without a lower loss on {found[0]['early_stop']['n_rows']:,} tuning rows and keeps "
        f"its best epoch: {early} of {len(found)} runs ended before epoch {epochs}, the best was {which}"
    )

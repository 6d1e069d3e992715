"""What a run came to, from its record alone."""

from __future__ import annotations

_LEVEL = 0.05


def learned_nothing(record: dict) -> bool:
    """Whether a finished classifier is not shown to be better than the commonest class.

    A rate that is too high for one seed does that without diverging: the loss settles at a constant's. What such a run
    changed is no update that has learned something, and its rank says nothing.

    Parameters
    ----------
    record : dict
        run.json.

    Returns
    -------
    bool
        By a one-sided exact binomial test, at 5 %, of the rows predicted right against the commonest class's share of
        the evaluation rows. False where there is nothing to judge by: no classification, or no score.
    """
    majority, accuracy = record["task"].get("majority"), (record.get("metrics") or {}).get("accuracy")
    if record["status"] != "ok" or majority is None or accuracy is None:
        return False
    from scipy.special import bdtrc

    n = record["task"]["n_eval"]
    return bool(bdtrc(round(accuracy * n) - 1, n, majority) > _LEVEL)

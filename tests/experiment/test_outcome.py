"""Which finished runs are not shown to be better than the commonest class."""

import pytest
from scipy.stats import binomtest

from rankprobe.experiment.outcome import learned_nothing


def record(accuracy, *, n=4000, majority=0.506, status="ok"):
    return {"status": status, "task": {"majority": majority, "n_eval": n}, "metrics": {"accuracy": accuracy}}


@pytest.mark.parametrize("n", [20, 277, 4000])
@pytest.mark.parametrize("majority", [0.25, 0.506, 0.9, 1.0])
def test_it_is_the_one_sided_exact_binomial_test(n, majority):
    verdicts = set()
    for hits in range(n + 1) if n < 1000 else range(int(n * majority) - 5, min(n, int(n * majority) + 70)):
        expected = binomtest(hits, n, majority, alternative="greater").pvalue > 0.05
        assert learned_nothing(record(hits / n, n=n, majority=majority)) == expected, hits
        verdicts.add(expected)
    all_right_by_chance = majority**n > 0.05  # so few rows, or so common a class, that no score would tell
    assert verdicts == ({True} if all_right_by_chance else {True, False})


def test_a_constant_and_a_coin_learned_nothing_and_a_head_did():
    assert learned_nothing(record(0.506)) and learned_nothing(record(0.494))
    assert not learned_nothing(record(0.559))


def test_nothing_is_said_where_there_is_nothing_to_judge_by():
    assert not learned_nothing(record(0.3, status="diverged"))
    assert not learned_nothing(record(0.3, majority=None))
    assert not learned_nothing({"status": "failed", "task": {"majority": 0.5, "n_eval": 9}})
    assert not learned_nothing({"status": "ok", "task": {"majority": 0.5, "n_eval": 9}, "metrics": {"perplexity": 3.0}})

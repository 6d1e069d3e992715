"""Scores against scikit-learn and scipy, closed forms and degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from rankprobe.errors import UsageError
from rankprobe.tasks.metrics import METRICS, score


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_matthews_against_sklearn(classes, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, 200)
    p = np.where(rng.random(200) < 0.6, y, rng.integers(0, classes, 200))
    found = score(("accuracy", "matthews"), y, p)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, p), abs=1e-15)
    assert found["matthews"] == pytest.approx(oracle.matthews_corrcoef(y, p), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_f1_against_sklearn(seed):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, 100), rng.integers(0, 2, 100)
    assert score(("f1",), y, p)["f1"] == pytest.approx(oracle.f1_score(y, p), abs=1e-15)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_against_scipy(seed, scale):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 6, 150).astype(float)  # ties, as in STS-B
    p = y + rng.normal(size=150)
    found = score(("pearson", "spearman"), y, p * scale)
    assert found["pearson"] == pytest.approx(stats.pearsonr(y, p).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, p).statistic, abs=1e-12)


def test_closed_forms():
    y, p = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    # TP 2, FN 1, FP 1, TN 4
    found = score(("accuracy", "f1", "matthews"), y, p)
    assert found == {"accuracy": 0.75, "f1": pytest.approx(4 / 6), "matthews": pytest.approx((2 * 4 - 1 * 1) / 15)}
    assert score(("spearman",), [1, 2, 3], [1.0, 10.0, 11.0]) == {"spearman": pytest.approx(1.0)}
    assert score(("pearson",), [1, 2, 3], [3, 2, 1]) == {"pearson": pytest.approx(-1.0)}


def test_relabelling_and_scale_change_nothing_they_should_not():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    swap = np.array([2, 0, 1])
    assert score(("matthews",), swap[y], swap[p])["matthews"] == pytest.approx(score(("matthews",), y, p)["matthews"])
    x = rng.normal(size=60)
    assert score(("pearson",), y, 3 * x + 7)["pearson"] == pytest.approx(score(("pearson",), y, x)["pearson"])
    assert score(("spearman",), y, np.exp(x))["spearman"] == pytest.approx(score(("spearman",), y, x)["spearman"])


@pytest.mark.parametrize(
    ("name", "labels"), [("matthews", [0, 1, 1]), ("pearson", [0.5, 1.0, 3.0]), ("spearman", [0.5, 1.0, 3.0])]
)
def test_constant_predictions_score_zero(name, labels):
    assert score((name,), labels, [1, 1, 1]) == {name: 0.0}
    assert score((name,), [1, 1, 1], labels) == {name: 0.0}


def test_f1_without_positives_is_zero():
    assert score(("f1",), [0, 0], [0, 0]) == {"f1": 0.0}


def test_order_follows_the_names_asked_for():
    assert list(score(tuple(reversed(METRICS)), [0, 1, 0], [0, 1, 1])) == list(reversed(METRICS))


@pytest.mark.parametrize(
    ("names", "labels", "predictions", "message"),
    [
        (("auc",), [0, 1], [0, 1], "A metric must be one of accuracy, f1, .*Got 'auc'"),
        (("accuracy",), [0, 1], [0], "of one length above 0. Got 2 and 1"),
        (("accuracy",), [], [], "of one length above 0. Got 0 and 0"),
        (("pearson",), [0, 1], [0, float("nan")], "must be finite. Got NaN or inf in 1 rows"),
        (("f1",), [0, 2], [0, 1], "f1 must be asked for classes 0 and 1 only. Got class 2"),
    ],
)
def test_bad_input_is_one_line(names, labels, predictions, message):
    with pytest.raises(UsageError, match=message) as error:
        score(names, labels, predictions)
    assert "\n" not in str(error.value)

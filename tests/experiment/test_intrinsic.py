"""The walk over d: which are trained, in which order, and where it ends; with scores that are known functions of d."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from rankprobe.experiment.intrinsic import log_grid, run_intrinsic, walk
from rankprobe.experiment.store import write_atomic

GRID = (10, 100, 1000, 10_000)


class Lab:
    """A sweep without training: a score for each method and d, and a record of what was asked for."""

    def __init__(self, scores, *, full=0.8, head=0.5, ds=GRID, tolerance=1.5, share=0.9, seeds=(0, 1), lost=()):
        self.scores, self.asked, self.lost = scores, [], set(lost)
        self.reference_scores = {"full": full, "head": head}
        reference = [self.run(method, None, seed) for method in ("full", "head") for seed in seeds]
        self.sweep = SimpleNamespace(
            reference=SimpleNamespace(runs=reference), methods=tuple(scores), ds=ds, tolerance=tolerance, share=share,
            runs=lambda method, d: [self.run(method, d, seed) for seed in seeds],
        )  # fmt: skip

    @staticmethod
    def run(method, d, seed):
        return SimpleNamespace(spec=SimpleNamespace(method=method, d=d, seed=seed))

    def do(self, run):
        method, d, seed = run.spec.method, run.spec.d, run.spec.seed
        if (method, d, seed) in self.lost:
            return None
        self.asked.append((method, d, seed))
        score = self.reference_scores[method] if d is None else self.scores[method](d)
        status = "diverged" if score is None or score != score else "ok"
        return {"status": status, "metrics": {"accuracy": score}, "task": {"metrics": ["accuracy"]}}

    def ds_of(self, method):
        list(walk(self.sweep, self.do))
        return list(dict.fromkeys(d for m, d, _ in self.asked if m == method))


def rising(to=0.8, start=0.5, middle=1000):
    """From ``start`` to ``to``; half of it at ``middle``."""
    return lambda d: start + (to - start) / (1 + middle / d)


def test_the_grid_goes_up_until_two_in_a_row_pass_every_bar():
    flat = Lab({"did": lambda d: 0.9})
    assert flat.ds_of("did") == [10, 100]
    assert Lab({"did": lambda d: 0.5}).ds_of("did") == list(GRID)


@pytest.mark.parametrize("tolerance", [1.1, 1.5, 3.0])
def test_bisection_ends_with_both_bars_in_brackets_within_the_tolerance(tolerance):
    lab = Lab({"did": rising()}, tolerance=tolerance)
    tried = np.array(sorted(lab.ds_of("did")))
    for bar in (0.9 * 0.8, 0.5 + 0.9 * 0.3):
        passed = np.array([rising()(d) >= bar for d in tried])
        below, above = tried[~passed].max(), tried[passed].min()
        assert below < above <= tolerance * below


def test_full_and_head_come_first_and_one_method_after_the_other():
    lab = Lab({"did": rising(), "said": rising(middle=50)})
    list(walk(lab.sweep, lab.do))
    methods = [m for m, _, _ in lab.asked]
    assert methods[:4] == ["full", "full", "head", "head"]
    grids = [(m, d) for m, d, s in lab.asked[4:] if d in GRID and s == 0]
    assert grids == sorted(grids, key=lambda x: (x[0], x[1]))


def test_the_same_scores_give_the_same_walk():
    first, second = (Lab({"did": rising(), "said": rising(middle=50)}) for _ in range(2))
    list(walk(first.sweep, first.do)), list(walk(second.sweep, second.do))
    assert first.asked == second.asked


def test_a_head_that_is_as_good_leaves_the_bar_of_the_score_alone():
    lab = Lab({"did": rising()}, head=0.8)
    tried = np.array(sorted(lab.ds_of("did")))
    assert not ((tried > 3500) & (tried < 10_000)).any(), "no bisection around 90 % of a gain that is none"


def test_what_is_not_to_be_had_ends_the_walk_of_its_method_alone():
    lab = Lab({"did": rising(), "said": rising()}, lost=[("did", 100, 1)])
    assert lab.ds_of("did") == [10, 100]
    assert set(GRID) <= {d for m, d, _ in lab.asked if m == "said"}
    nothing = Lab({"did": rising()}, lost=[("full", None, 0)])
    assert nothing.ds_of("did") == []


def test_runs_that_diverged_say_nothing_of_their_d():
    lab = Lab({"did": lambda d: math.nan if d == 100 else rising()(d)})
    tried = lab.ds_of("did")
    assert set(GRID) <= set(tried)
    assert Lab({"did": lambda d: math.nan}).ds_of("did") == list(GRID)


def test_a_run_that_is_done_again_in_vain_fails_and_the_walk_goes_as_it_went(tmp_path):
    """For its weights, which the functional rank needs: its score is there all the same."""
    lab = Lab({"did": rising()})
    list(walk(lab.sweep, lab.do))
    walked = lab.asked

    def placed(run):
        run.run_id = f"{run.spec.method}-{run.spec.d}-s{run.spec.seed}"
        run.folder = tmp_path / run.run_id
        return run

    def record_of(run):
        kept = run.spec.method != "full"
        return {**lab.do(run), "schema": 1, "run_id": run.run_id, "kind": "train", "files": {}, "weights_kept": kept}

    class Losing:
        """An executor whose workers are lost where weights are needed."""

        width = 1

        def __call__(self, pieces, observer, stop):
            for piece in pieces:
                for run in piece.runs:
                    if piece.need_weights:
                        yield record_of(run) | {"status": "failed"}
                    elif not piece.truncation:
                        yield record_of(run)

    lab = Lab({"did": rising()})
    sweep = lab.sweep
    sweep.reference.runs = [placed(run) for run in sweep.reference.runs]
    runs_at = sweep.runs
    sweep.runs = lambda method, d: [placed(run) for run in runs_at(method, d)]
    first = sweep.reference.runs[0]
    keys = ("spec", "model", "params", "timings")
    write_atomic(first.folder / "run.json", json.dumps(record_of(first) | {key: {} for key in keys}))
    lab.asked.clear()
    records = list(run_intrinsic(sweep, functional_rank=True, executor=Losing()))
    assert lab.asked == walked
    assert [r["status"] for r in records if r["run_id"] == first.run_id] == ["ok", "failed"]


def test_no_whole_number_between_ends_bisection():
    assert set(Lab({"did": lambda d: 0.5 if d < 2 else 0.9}, ds=(1, 2, 3), tolerance=1.01).ds_of("did")) == {1, 2, 3}


def test_log_grids():
    assert log_grid(100, 100_000, 2) == (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
    assert log_grid(7, 7, 3) == (7,) and log_grid(1, 4, 10) == (1, 2, 3, 4)

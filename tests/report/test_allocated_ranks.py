"""The study of allocated ranks: who has won follows from paired differences, inside one size."""

import importlib.util
import json
from pathlib import Path

import pytest

from rankprobe.experiment.study_file import load_study
from tests.report.synthetic import make_run

FOLDER = Path(__file__).parents[2] / "studies" / "allocated-ranks"
PATTERNS = {(r, kind): {"query": r, "value": i} for r in (8, 2) for i, kind in enumerate(("sensitivity", "energy"))}


@pytest.fixture
def study():
    spec = importlib.util.spec_from_file_location("allocated", FOLDER / "allocated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(tmp_path, scores):
    """Runs of three seeds with these scores by (r, kind), and what verdicts reads."""
    (tmp_path / "patterns").mkdir()
    for (r, kind), pattern in PATTERNS.items():
        (tmp_path / "patterns" / f"qv-r{r}-{kind}.json").write_text(json.dumps(pattern))
    runs = []
    for (r, kind), accuracies in scores.items():
        pattern = {"rank_pattern": [list(pair) for pair in sorted(PATTERNS[r, kind].items())]} if kind else {}
        for seed, accuracy in enumerate(accuracies):
            runs.append(make_run(tmp_path / "runs", r=r, seed=seed, accuracy=accuracy, **pattern)["run_id"])
    (tmp_path / "plan.json").write_text(json.dumps({"runs": runs}))
    return tmp_path, tmp_path / "runs", tmp_path / "patterns"


def records(folders):
    """As load_runs gives them; synthetic records have no list of files."""
    return [json.loads((folder / "run.json").read_text()) | {"path": str(folder)} for folder in folders]


def test_the_side_whose_interval_leaves_out_0_has_won(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "load_runs", records)
    scores = {
        (8, ""): (0.770, 0.772, 0.774), (8, "sensitivity"): (0.780, 0.783, 0.784), (8, "energy"): (0.768, 0.775, 0.772),
        (2, ""): (0.770, 0.772, 0.774), (2, "sensitivity"): (0.760, 0.761, 0.764),
    }  # fmt: skip
    table = study.verdicts(*store(tmp_path, scores)).set_index(["a", "b"])
    at_8, at_2 = table[table["parameters"] == 6 * 2 * 8 * 768], table[table["parameters"] == 6 * 2 * 2 * 768]
    assert at_8["won"].to_dict() == {("sensitivity", "one r"): "sensitivity", ("energy", "one r"): "not told apart",
                                     ("sensitivity", "energy"): "sensitivity"}  # fmt: skip
    assert at_2["won"].to_dict() == {("sensitivity", "one r"): "one r"}, "what is not run yet is left out"
    assert at_8.loc[("sensitivity", "one r"), "difference"] == pytest.approx(0.0103, abs=1e-3)
    assert set(table["ci_method"]) == {"t over 3 paired seeds, normal over 1,500 eval rows"}


def test_study_files_compare_equal_sizes_at_one_rate_and_seeds_apart_from_the_sources(study, tmp_path):
    folder = study.shrunk(tmp_path)
    (folder / "patterns").mkdir()
    for (r, kind), pattern in PATTERNS.items():
        (folder / "patterns" / f"qv-r{r}-{kind}.json").write_text(json.dumps(pattern))
    source, compared = load_study(FOLDER / "source.toml"), load_study(folder / "study.toml")
    place = {"dtype": "float32", "device": "cpu", "threads": 1}
    for r in study.BUDGETS:
        specs = [spec for spec in compared.specs(**place) if spec.r == r]
        assert len({spec.rank_pattern for spec in specs}) == 3 and len({spec.lr for spec in specs}) == 1
        assert len({spec.alpha for spec in specs}) == 1
    seeds = {spec.seed for spec in compared.specs(**place)}
    assert len(seeds) == 3 and not seeds & {spec.seed for spec in source.specs(**place)}
    assert compared.task == "docmatch-smoke" and source.task == "docmatch"

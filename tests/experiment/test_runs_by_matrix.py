"""Runs and study files with an r of its own for each matrix, from the file to the record and back."""

import json

import peft
import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.fit import check_fit, parameter_counts
from rankprobe.experiment.models import load_trained
from rankprobe.experiment.runs import execute, trained_predictions
from rankprobe.experiment.store import load_runs, run_id
from rankprobe.experiment.study import Study
from rankprobe.experiment.study_file import load_study
from rankprobe.report.comparison import configurations, lora_groups, main_lora
from rankprobe.report.tables import methods_table, rank_sweep_table, runs_table
from rankprobe.weights.pretrained import find_model, load_classifier
from tests.experiment.test_runs import PLACE, planned, task  # noqa: F401

PATTERN = {"layer.0.attention.self.query": 0, "layer.0.attention.self.value": 5, "layer.1.attention.self.query": 1}
SHA = {"model_sha256": "m", "tokenizer_sha256": "t", "task_sha256": "d"}
STUDY = """
task = "docmatch"
truncate = []
[[configurations]]
method = "lora"
r = 2
lr = 1e-2
rank_pattern = {}
"""


def spec_of(**settings):
    return Study("toy", (Configuration("lora", r=2, lr=1e-2, **settings),), truncate=()).specs(**PLACE)[0]


def test_a_run_without_a_pattern_keeps_the_id_that_it_had_before_there_were_any():
    # Taken from the version before patterns.
    assert run_id(spec_of(), **SHA) == "lora-r2-qv-eval-s0-3831a53538"


def test_the_order_of_keys_does_not_matter_to_a_run_and_their_content_does():
    same = spec_of(rank_pattern=dict(reversed(PATTERN.items())))
    assert spec_of(rank_pattern=PATTERN) == same and run_id(same, **SHA).startswith("lora-r2-by-matrix-qv-eval-s0-")
    ids = {run_id(spec_of(rank_pattern=p), **SHA) for p in (None, PATTERN, {"query": 2}, {"query": 3})}
    assert len(ids) == 4


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_run_by_matrix_from_end_to_end(tmp_path, task, kind):  # noqa: F811
    pattern = PATTERN if kind == "bert" else {"h.0.attn.c_attn.q": 0, "h.0.attn.c_attn.v": 5, "h.1.attn.c_attn.q": 1}
    run = planned(tmp_path, task, Configuration("lora", r=2, lr=1e-2, rank_pattern=pattern), kind=kind).runs[0]
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    # v of layer 1 has r = 2: 5 + 1 + 2 directions of 32 + 32 parameters.
    assert record["params"]["method"] == 8 * 64
    assert parameter_counts([run])[run.run_id] == record["params"]["trainable"]
    again = load_trained(run.folder, run.spec, run.source, task)
    ours = trained_predictions(run, again)
    base, _, _ = load_classifier(run.source, 2, seed=99)
    theirs = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    again.model.double(), theirs.double()
    ids = {"input_ids": torch.arange(5, 25).reshape(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(theirs(**ids).logits, again.model(**ids).logits, rtol=1e-9, atol=1e-9)
    assert ours.scores.shape == (60,)


def test_tables_keep_it_apart_from_one_r_for_all(tmp_path, task):  # noqa: F811
    plain = Configuration("lora", r=2, lr=1e-2)
    study = planned(tmp_path, task, plain, Configuration("lora", r=2, lr=1e-2, rank_pattern=PATTERN, seeds=2))
    for run in study.runs:
        execute(run)
    runs = load_runs(run.folder for run in study.runs)
    assert [len(group) for group in configurations(runs)] == [1, 2]
    assert [run["run_id"] for run in lora_groups(runs, "q,v")[2]] == [study.runs[0].run_id]
    assert main_lora(runs)[0]["spec"]["rank_pattern"] is None, "it stands for LoRA whatever the number of seeds"
    methods = methods_table(runs)
    assert methods["targets"].str.contains("by matrix").tolist() == [False, True]
    assert len(rank_sweep_table(methods)) == 2 and runs_table(runs)["targets"].nunique() == 2


def test_a_pattern_that_does_not_fit_the_model_is_refused_before_anything_is_trained(tmp_path, task):  # noqa: F811
    study = planned(tmp_path, task, Configuration("lora", r=2, lr=1e-2, rank_pattern={"querry": 1}))
    with pytest.raises(UsageError, match="keys of rank_pattern must name matrices among the targets. Got querry"):
        check_fit([study.runs[0].spec], find_model(tmp_path / "base"))


def test_a_study_file_has_it_as_a_table_or_names_a_file_beside_it(tmp_path):
    (tmp_path / "patterns").mkdir()
    (tmp_path / "patterns" / "a.json").write_text(json.dumps(PATTERN))
    file = tmp_path / "study.toml"
    found = []
    for text in ('"patterns/a.json"', '{"layer.0.attention.self.query" = 0, "layer.0.attention.self.value" = 5, '
                 '"layer.1.attention.self.query" = 1}'):  # fmt: skip
        file.write_text(STUDY.format(text))
        found.append(load_study(file).configurations[0])
    assert found[0] == found[1] and dict(found[0].rank_pattern) == PATTERN
    file.write_text(STUDY.format('["patterns/a.json", "patterns/a.json"]'))
    assert len(load_study(file).configurations) == 2


@pytest.mark.parametrize(("text", "message"), [
    ('"nothing.json"', "rank_pattern in .*study.toml must be a JSON file. Got .*nothing.json"),
    ('"study.toml"', "study.toml must be JSON"),
    ('"peft.json"', "peft.json must hold one r for each matrix. Got PEFT's config.* Pass rank_pattern.json"),
    ('"list.json"', "list.json must hold one r for each matrix. Got a list"),
    ("8", "rank_pattern in .* must be a table of r by matrix, or the path of a JSON file. Got 8"),
    ("{query = -1}", "r of query in rank_pattern must be a whole number"),
])  # fmt: skip
def test_study_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "peft.json").write_text('{"peft_type": "LORA", "rank_pattern": {}}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "study.toml").write_text(STUDY.format(text))
    with pytest.raises(UsageError, match=message):
        load_study(tmp_path / "study.toml")


def test_a_pattern_is_for_lora_alone():
    with pytest.raises(UsageError, match="rank_pattern must be left out unless the method is lora"):
        Configuration("full", rank_pattern=PATTERN)

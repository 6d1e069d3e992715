"""Bad input: one line on stderr, the right exit code, no traceback, and nothing written that would be trusted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from safetensors import SafetensorError

from tests.cli.lab import COLUMNS, COMPUTE, FILES, FINETUNE, SMALL, SWEEP, csv, furnish, rankprobe, refused, texts
from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A furnished folder with every wrong file that the tests below name. No test writes into it."""
    folder = tmp_path_factory.mktemp("wrong")
    before = Path.cwd()
    os.chdir(folder)
    try:
        furnish(folder)
        for name in ("all-MiniLM-L6-v2", "no-weights", "cut", "no-tokenizer", "no-config", "unknown-type"):
            shutil.copytree("base", name)
        for file in ("no-weights/model.safetensors", "no-config/config.json", "no-tokenizer/tokenizer.json"):
            Path(file).unlink()
        Path("cut/model.safetensors").write_bytes(Path("base/model.safetensors").read_bytes()[:5000])
        Path("unknown-type/config.json").write_text('{"model_type": "nope"}')
        Path("empty.csv").write_text("")
        Path("header.csv").write_text("text,label\n")
        csv("one-label.csv", [(t, "pos") for t in texts(10)])
        csv("other-label.csv", [(t, ("neg", "pso")[i % 2]) for i, t in enumerate(texts(10))])
        csv("blank.csv", [("", ("neg", "pos")[i % 2]) for i in range(10)])
        csv("scores.csv", [(t, i / 7) for i, t in enumerate(texts(40))])
        csv("latin.csv", [("caf\xe9 good", "pos"), ("bad row", "neg")], encoding="latin-1")
        csv("short.csv", [("good", "pos"), ("bad",)])
        Path("list.jsonl").write_text('{"text": "good", "label": "pos"}\n["bad", "neg"]\n')
        Path("a-file").write_text("x")
        Path("thesis").mkdir()
        Path("thesis/chapter1.tex").write_text("x")
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # the model
        (["--model", "nobody/no-such-model"], "'nobody/no-such-model', which is no folder and not in the hub cache"),
        (["--model", "no such model"], "'no such model', which is no folder and no hub name"),
        (["--model", "train.csv"], "path must be a folder with config.json and weights"),
        (["--model", "no-weights"], "must hold weights. Got no-weights with none of model.safetensors"),
        (["--model", "no-config"], "Got no-config without config.json"),
        (["--model", "unknown-type"], "architecture that this transformers knows. .* `?nope`?"),
        (["--model", "./all-MiniLM-L6-v2"], "sha256 of all-MiniLM-L6-v2's weights must be 53aa51172d14"),
        # the task
        (["--task", "sst2"], "Own files must be used with the task files. Got the task sst2"),
        (["--label", "lable"], "train.csv must have a column 'lable'. Got the columns text, label. Did you mean label"),
        (["--text-b", "pair"], "must have a column 'pair'"),
        (["--text", "label"], "must be different columns. Got label, label"),
        (["--train", "nothing.csv"], "nothing.csv must be a file"),
        (["--train", "base"], "base must end in .tsv, .csv or .jsonl"),
        (["--train", "eval.csv"], "--train and --eval must be two files"),
        (["--train", "empty.csv"], "empty.csv must have rows. Got an empty file"),
        (["--eval", "header.csv"], "header.csv must have a row below its header"),
        (["--train", "one-label.csv"], "one-label.csv must have rows of at least two labels. Got one label in 10 rows"),
        (["--eval", "one-label.csv"], "one-label.csv must have rows of at least two labels"),
        (
            ["--eval", "other-label.csv"],
            "line 3 of other-label.csv must be one of .* neg, pos. Got 'pso'. Did you mean pos",
        ),
        (["--train", "blank.csv"], "blank.csv must have texts"),
        (["--train", "scores.csv"], "must hold classes. Got 40 different labels .* Pass --regression"),
        (["--regression"], "line 2 of train.csv must be a finite number. Got 'neg'"),
        (["--train", "latin.csv"], "latin.csv must be text in utf-8. Got byte 0xe9 on line 2 .* --encoding latin-1"),
        (["--encoding", "klingon"], "--encoding must be a text encoding that Python knows. Got 'klingon'"),
        (["--train", "short.csv"], "short.csv line 3 must have 2 columns"),
        (["--train", "list.jsonl"], "list.jsonl line 2 must be one JSON object. Got a JSON list"),
        (["--no-header", "--text", "0", "--label", "5"], "must have a column '5'. Got the columns 0, 1"),
        (["--train-size", 41], "--train-size must be between 1 and the train rows there are, 40. Got 41"),
        (["--eval-size", 1000], "--eval-size must be between 2 and the eval rows there are, 20. Got 1000"),
        (["--train-size", 1], "at least two labels"),
        # LoRA
        (["--r", 0], "r must be at least 1. Got 0"),
        (["--r", -8], "r must be at least 1. Got -8"),
        (["--r", 33], r"r must be from 1 to min\(m, n\) = 32 .* Got 33"),
        (["--targets", "gate"], r"must name matrices that the model has \(q, k, v, o, up, down\). Got gate"),
        (["--targets", "zzz"], "must match a linear weight of the model .* Got 'zzz'. Pass q,v"),
        (["--targets", "qery"], "Did you mean"),
        (["--targets", "("], "must be short names .* or a regular expression"),
        (["--targets", ""], "targets must name something"),
        (["--targets", " "], "targets must name something"),
        (["--alpha", "inf"], "alpha must be above 0 and finite"),
        (["--dropout", 1], r"dropout must be in \[0, 1\)"),
        (["--method", "full", "--r", 4], "--r must be left out unless the method is lora. Got --method full"),
        (
            ["--method", "head", "--targets", "q", "--alpha", 3],
            "--alpha and --targets must be left out|--targets and --alpha must",
        ),
        (["--method", "head", "--truncate"], "--truncate must be of a method that changes matrices"),
        # training
        (["--max-length", 131], "max_length must be at most 130, the positions of the model. Got 131"),
        (["--lr", 0], "lr must be above 0"),
        (["--lr", "nan"], "lr must be above 0 and finite. Got nan"),
        (["--lr", "inf"], "lr must be above 0 and finite. Got inf"),
        (["--weight-decay", "nan"], "weight_decay must be 0 or more and finite"),
        (["--clip-norm", "inf"], "clip_norm must be 0 or more and finite"),
        (["--model-dropout", "nan"], "model_dropout must be in"),
        # places
        (["--runs", "a-file"], "run store must be a folder. Got the file .*a-file"),
        (["--runs", "a-file/below"], "run store must be a folder. Got the file .*a-file"),
    ],
)
def test_finetune_refuses(wrong, monkeypatch, arguments, message):
    monkeypatch.chdir(wrong)
    refused(rankprobe(*FINETUNE, *arguments), 2, message)
    assert not Path("runs").exists(), "nothing is written before everything is checked"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-tokenizer", "must hold its tokenizer. Got .*no-tokenizer with none of tokenizer.json"),
        ("cut", "model.safetensors must be a whole safetensors file. Got 1016 bytes"),
    ],
)
def test_a_model_that_cannot_be_loaded_leaves_no_record(wrong, monkeypatch, tmp_path, model, message):
    monkeypatch.chdir(wrong)
    refused(rankprobe(*FINETUNE, "--model", model, "--runs", tmp_path / "runs"), 2, message)
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sts-b"], "task must be one of .* Got 'sts-b'. Did you mean stsb"),
        (["--task", "sst2", "--data-dir", "thesis"], "thesis must hold sst2's train.tsv"),
        (["--task", "sst2", "--data-dir", "nowhere"], "--data-dir must be a folder"),
        (["--task", "docmatch", "--data-dir", "thesis"], "--data-dir must be given for a GLUE task only"),
        (["--task", "files"], "own files must come with --train, --eval, --text and --label. Got none of them"),
        (["--train", "train.csv", "--label", "label"], "Got --train, --label. Pass all four"),
        (["--task", "sst2", "--regression", "--no-header"], "--no-header and --regression must be of own files"),
    ],
)
def test_tasks_refuse(wrong, monkeypatch, arguments, message):
    monkeypatch.chdir(wrong)
    refused(rankprobe("finetune", "--model", "base", *COMPUTE, *SMALL, *arguments), 2, message)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--r", "eight"],
        ["finetune", "--r", "8.0"],
        ["finetune", "--seed", "-1"],
        ["finetune", "--threads", "0"],
        ["finetune", "--seed", "9" * 30],
        ["finetune", "--threads", "100000"],  # both crashed torch
        ["finetune", "--train-size", "0"],
        ["finetune", "--batch-size", "0"],
        ["finetune", "--epochs", "0"],
        ["finetune", "--max-length", "2"],
        ["finetune", "--method", "promt"],
        ["finetune", "--warmup-ratio", "1"],
        ["finetune", "--dtype", "int8"],
        ["sweep", "--r", "1,,2"],
        ["sweep", "--r", ""],
        ["sweep", "--seeds", "0"],
        ["latency", "--budget", "0"],
        ["reproduce-paper", "--scale", "huge"],
        ["spectrum"],
        ["compare", "one"],
        ["extract"],
        ["data"],
        ["fine-tune"],
        ["--verbose"],
    ],
)
def test_malformed_options_are_clicks_own_usage_errors(arguments):
    result = rankprobe(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("Usage: rankprobe") and "\nError: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--r", "1,99"], r"r must be from 1 to min\(m, n\) = 32 .* Got 99"),
        (["--r", "0"], "r must be at least 1"),
        (["--targets", "q,v", "--targets", "gate"], "must name matrices that the model has"),
        (["--no-full", "--no-head", "--r", "1", "--max-length", "4096"], "max_length must be at most 130"),
        (["--out", "a-file"], "output folder must be a folder. Got a-file"),
        (["--out", "thesis"], "output folder must be empty or hold an earlier plan.json. Got thesis"),
        (["--out", "."], "output folder must be empty or hold an earlier plan.json"),
        (["--out", "runs"], "--out must be outside the run store runs"),
        (["--out", "runs/tables"], "--out must be outside the run store runs"),
        (["--out", "store", "--runs", "../{here}/store"], "--out must be outside the run store"),
    ],
)
def test_sweep_refuses_before_it_trains(wrong, monkeypatch, arguments, message):
    monkeypatch.chdir(wrong)
    there = sorted(os.listdir())
    refused(rankprobe(*SWEEP, "--r", "1", *(a.format(here=wrong.name) for a in arguments)), 2, message)
    assert sorted(os.listdir()) == there and os.listdir("thesis") == ["chapter1.tex"]


def test_output_folder_that_cannot_be_made(wrong, monkeypatch):
    monkeypatch.chdir(wrong)
    refused(
        rankprobe(*SWEEP, "--r", "1", "--out", "a-file/below"), 1, "output folder must be writable. Got a-file/below"
    )
    assert not Path("runs").exists()


def test_a_run_store_that_cannot_be_written(bench, monkeypatch):
    # The tests may run as root, whom no mode keeps out.
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        refused(rankprobe(*FINETUNE), 1, "run store must be writable. Got runs")
    monkeypatch.setattr("rankprobe.experiment.store.open", _read_only, raising=False)
    refused(rankprobe(*FINETUNE), 1, r"\.lock must be readable and writable. Got Read-only file system")


def _read_only(path, *args, **kwargs):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


_STUDY = """task = "files"
model = "base"
max_length = 16
batch_size = 8
epochs = 1
[[configurations]]
method = "head"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (_STUDY, "", "must compare at least one configuration"),
        (_STUDY, "epochs", "study.toml must be TOML"),
        ("epochs = 1", "epoch = 1", "key in study.toml must be one of .* Got epoch. Did you mean 'epochs'"),
        ('method = "head"', 'methd = "head"', "key in study.toml must be one of .* Got methd. Did you mean 'method'"),
        ('method = "head"', 'method = "HEAD"', "Did you mean 'head'"),
        ('method = "head"', 'method = "lora"\nr = 4\nalpha = ""', "alpha must be above 0 and finite"),
        ("epochs = 1", "epochs = 1.5", "epochs in study.toml must be int. Got 1.5"),
        ("epochs = 1", "epochs = 0", "epochs must be at least 1"),
        ("epochs = 1", "lr = 1e-3", "Got lr"),
        ("epochs = 1", "seed = -1", "seed must be at least 0"),
        ("epochs = 1", "split = 'dev'", "split must be eval or tuning"),
        ("epochs = 1", "truncate = 'full'", "truncate in study.toml must be a list of texts"),
        ("epochs = 1", "truncate = [8]", "truncate in study.toml must be a list of texts"),
        ("epochs = 1", "truncate = ['lora']", "truncate must name full or lora-rN"),
        (
            "epochs = 1",
            "truncate = ['lora-r8']",
            "truncate in study.toml must name configurations of the study. Got 'lora-r8'",
        ),
        ("epochs = 1", "clip_norm = -1.0", "clip_norm must be 0 or more"),
        ("epochs = 1", "model_dropout = 2.0", r"model_dropout must be in \[0, 1\)"),
        ("epochs = 1", "name = '../../elsewhere'", "a study's name must have no slash"),
        ('[[configurations]]\nmethod = "head"', "configurations = 3", "must be a list of tables. Got 3"),
        ('[[configurations]]\nmethod = "head"', "configurations = ['full']", "must be a list of tables"),
        ("[[configurations]]", "[configurations]", r"Write \[\[configurations\]\]"),
        ('method = "head"', "seeds = 2", "a configuration in study.toml must have a method"),
        ('"head"', '"haed"', "method must be one of full, head, lora, .*. Got haed. Did you mean 'head'"),
        ('"head"', '"lora"', "r must be at least 1. Got None"),
        ('"head"', '"lora"\nr = []', "r in study.toml must have a value. Got an empty list"),
        ('"head"', '"lora"\nr = "8"', "r in study.toml must be int. Got '8'"),
        ('"head"', '"head"\ndropout = 0.1', "dropout must be left out unless the method is lora"),
        ('"head"', '"head"\nlr = nan', "lr must be above 0"),
        ('"head"', '"head"\nseeds = 0', "seeds must be at least 1"),
    ],
)
def test_studies_refuse(bench, old, new, message):
    Path("study.toml").write_text(_STUDY.replace(old, new))
    refused(rankprobe("sweep", "study.toml", *FILES, *COMPUTE), 2, message)
    assert not Path("runs").exists() and not Path("results").exists()


def test_study_files_that_are_none_or_meet_other_options(bench):
    refused(rankprobe("sweep", "nowhere.toml", *FILES), 2, "study must be a TOML file. Got nowhere.toml")
    refused(rankprobe("sweep", "base", *FILES), 2, "study must be a TOML file. Got base")
    Path("study.toml").write_bytes(b"\xff\xfe")
    refused(rankprobe("sweep", "study.toml", *FILES), 2, "study.toml must be TOML")
    Path("study.toml").write_text("\ufeff" + _STUDY, encoding="utf-8")
    assert rankprobe("sweep", "study.toml", *FILES, *COMPUTE, "--dry-run").exit_code == 0
    typed = rankprobe("sweep", "study.toml", *FILES, *COMPUTE, "--epochs", 3, "--r", 2)
    refused(typed, 2, "--r, --epochs must be left out beside a study file")
    Path("study.toml").write_text(_STUDY.replace('"head"', '"full"').replace("epochs", 'truncate = ["full"]\nepochs'))
    refused(
        rankprobe("sweep", "study.toml", *FILES, "--drop-weights"),
        2,
        "--drop-weights must be for a study without truncate",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "8"], "shapes must be batch x length pairs"),
        (["--shapes", "0x8"], "must be pairs of a batch and a length, 1 or more"),
        (["--shapes", "1x131"], "a shape's length must be at most 130"),
        (["--r", "0"], "r must be from 1"),
        (["--targets", "zzz"], "targets must match"),
        (["--model", "nobody/no-such-model"], "must be on this machine"),
        (["--runs", "train.csv"], "run store must be a folder"),
    ],
)
def test_latency_refuses(bench, arguments, message):
    refused(rankprobe("latency", "--model", "base", *COMPUTE, "--shapes", "1x8", *arguments), 2, message)
    assert not list(Path(".").rglob("run.json"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["spectrum", "no-such-run"], 2, "TUNED must be on this machine. Got 'no-such-run', which is no folder or run"),
        (["spectrum", "train.csv"], 2, "train.csv must end with .safetensors"),
        (["params", "--model", "base", "--r", "1,99"], 2, "r must be from 1 to"),
        (["params", "--model", "nobody/no-such-model"], 2, "must be on this machine"),
        (["report", "nowhere"], 2, "DIR must be an output folder"),
        (["report", "train.csv"], 2, "DIR must be an output folder"),
        (["reproduce-paper", "--only", "rank-is-magic"], 2, "--only must be.* lora-equals-full, "),
        (["reproduce-paper", "--only", ""], 2, "--only must be.* lora-equals-full, "),
        (["reproduce-paper", "--runs", "train.csv"], 2, "run store must be a folder"),
        (["data", "files", *FILES, "--out", "base"], 2, "--out must be a new folder"),
        (
            ["data", "files", *FILES, "--out", "train.csv/below"],
            1,
            "train.csv/below must be readable and writable. Got Not a directory",
        ),
    ],
)
def test_the_other_commands_refuse(bench, arguments, code, message):
    refused(rankprobe(*arguments), code, message)
    assert not Path("runs").exists() and not Path("results").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\0" * 64,
        '{"schema": 2, "run_id": "a", "kind": "train", "status": "ok"}',
        '{"schema": 1, "run_id": "a", "kind": "train", "status": "ok", "files": [], "weights_kept": true}',
        '{"schema": 1, "run_id": "a", "kind": "train", "status": "ok", "files": {}, "weights_kept": true}',
        b"\xff\xfe",
    ],
)
def test_a_corrupt_record_is_named_and_can_be_redone(bench, text):
    run = Path("runs") / _run_id(FINETUNE)
    run.mkdir(parents=True)
    (run / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = (
        f"{run}/run.json must be a record that rankprobe wrote. .* Delete {run} and run the same command to redo it"
    )
    refused(rankprobe(*FINETUNE), 2, message)
    refused(rankprobe("spectrum", run), 2, message)
    shutil.rmtree(run)
    assert rankprobe(*FINETUNE).exit_code == 0 and json.loads((run / "run.json").read_text())["status"] == "ok"


def _run_id(command):
    """The run that a finetune command would do."""
    shown = rankprobe("sweep", *command[1:], "--r", "8", "--no-full", "--no-head", "--dry-run").stdout
    return next(word for word in shown.split() if word.startswith("lora-"))


def test_a_clone_has_records_without_files(bench):
    run = Path("runs") / _run_id(FINETUNE)
    assert rankprobe(*FINETUNE).exit_code == 0
    record = (run / "run.json").read_text()
    (run / "ranks.csv").unlink()
    refused(rankprobe("spectrum", run), 2, "RUN must hold ranks.csv. Got .* run it again")
    assert rankprobe(*FINETUNE).exit_code == 0 and (run / "ranks.csv").is_file(), "it is redone"
    assert (run / "run.json").read_text() != record


def test_report_needs_the_runs_and_leaves_the_old_tables(bench, no_pictures):
    assert rankprobe(*SWEEP, "--r", "1", "--no-full", "--no-head", "--out", "out").exit_code == 0
    before = Path("out/tables/methods.csv").read_text()
    refused(
        rankprobe("report", "out", "--runs", "elsewhere"),
        2,
        "--runs must hold runs that out/plan.json names. Got elsewhere",
    )
    assert Path("out/tables/methods.csv").read_text() == before
    for text in ("{", "[]", '{"name": "x"}', '{"name": "x", "runs": "all"}'):
        Path("out/plan.json").write_text(text)
        refused(rankprobe("report", "out"), 2, "out/plan.json")


@pytest.mark.parametrize(("method", "batch"), [("full", 8), ("lora", 8), ("full", 40), ("lora", 40), ("head", 40)])
def test_divergence_is_recorded_and_ends_with_1(bench, method, batch):
    """With 40 rows a batch there is one step, and what it does to the weights shows in no loss."""
    command = [*FINETUNE, "--method", method, "--lr", "1e38", "--batch-size", batch]
    result = rankprobe(*command)
    refused(result, 1, f"{method}-.* diverged: .* must be finite. .* Lower the learning rate")
    [path] = Path("runs").glob("*/run.json")
    record = json.loads(path.read_text())
    assert record["status"] == "diverged" and record["metrics"] == {} and not (path.parent / "predictions.csv").exists()
    before = path.stat().st_mtime_ns
    assert rankprobe(*command).stderr == result.stderr and path.stat().st_mtime_ns == before, (
        "the same without training again"
    )


def test_a_sweep_reports_the_others_when_one_diverges(bench, no_pictures):
    Path("study.toml").write_text(_STUDY + '[[configurations]]\nmethod = "lora"\nr = 2\nlr = [1e30, 0.01]\n')
    result = rankprobe("sweep", "study.toml", *FILES, *COMPUTE, "--out", "out")
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("rankprobe: 1 of 3 runs diverged or failed. lora-r2-qv-")
    methods = pd.read_csv("out/tables/methods.csv")
    lost = methods["lr"] == 1e30
    assert methods["n_diverged"].tolist() == [int(x) for x in lost] and len(methods) == 3
    assert methods["accuracy_mean"].isna().tolist() == lost.tolist()


def test_a_failure_nobody_foresaw_is_recorded_and_redone(bench, no_pictures, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("two\nlines")

    with monkeypatch.context() as patch:
        patch.setattr("rankprobe.experiment.runs.train", broken)
        result = rankprobe(*FINETUNE)
    refused(result, 1, "must end without an error. Got RuntimeError: two lines. See runs/")
    [path] = Path("runs").glob("*/run.json")
    assert json.loads(path.read_text())["status"] == "failed" and "Traceback" in (path.parent / "error.txt").read_text()
    assert rankprobe(*FINETUNE).exit_code == 0 and not (path.parent / "error.txt").exists()


def test_memory_that_runs_out_is_one_line(bench, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 51199999488 bytes.")

    monkeypatch.setattr("rankprobe.experiment.latency.measure_latency", full)
    refused(rankprobe("latency", "--model", "base", *COMPUTE), 1, "the work must fit into memory")
    monkeypatch.setattr("rankprobe.experiment.runs.train", lambda *args, **kwargs: (_ for _ in ()).throw(MemoryError))
    refused(rankprobe(*FINETUNE), 1, "the work must fit into memory")
    assert not list(Path("runs").rglob("run.json"))


@pytest.mark.parametrize("name", ["history.csv", "predictions.csv", "spectra.csv", "run.json"])
def test_a_full_disk_leaves_no_run_that_is_trusted(bench, monkeypatch, name):
    fsync, mkstemp, writing = os.fsync, tempfile.mkstemp, []

    def full_mkstemp(*args, **kwargs):
        writing[:] = [kwargs["prefix"]]
        return mkstemp(*args, **kwargs)

    def full_fsync(handle):
        if writing == [f".{name}."]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_fsync)
        patch.setattr(tempfile, "mkstemp", full_mkstemp)
        refused(
            rankprobe(*FINETUNE), 1, rf"the disk must have room. Got No space left on device \(.*{name}\). Free space"
        )
    assert not list(Path("runs").rglob("run.json"))
    assert rankprobe(*FINETUNE).exit_code == 0


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),  # what tokenizers raises
    ],
)
def test_a_full_disk_while_weights_are_saved_stops_a_sweep(bench, monkeypatch, no_pictures, error):
    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("rankprobe.experiment.models.save_lora", full)
        refused(rankprobe(*SWEEP, "--r", "1,2", "--no-full", "--no-head", "--out", "out"), 1, "the disk must have room")
    assert not list(Path("runs").rglob("run.json")) and len(os.listdir("runs")) == 1, (
        "the next would find no room either"
    )


def test_seeds_without_weights_and_then_with_them(bench, no_pictures):
    command = [*SWEEP, "--r", "1", "--no-full", "--no-head", "--seeds", "3", "--out", "out"]
    assert rankprobe(*command, "--drop-weights").exit_code == 0
    assert not list(Path("runs").rglob("*.safetensors")) and len(os.listdir("runs")) == 3
    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/run.json")}
    predictions = {path: path.read_bytes() for path in Path("runs").glob("*/predictions.csv")}
    assert rankprobe(*command, "--drop-weights").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rankprobe(*command).exit_code == 0, "the default does nothing again"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rankprobe(*command, "--keep-weights").exit_code == 0, "now the weights are wanted"
    assert len(list(Path("runs").rglob("adapter_model.safetensors"))) == 3
    assert {path: path.read_bytes() for path in predictions} == predictions


def test_folders_with_spaces_and_letters_of_any_script(bench, no_pictures):
    place = Path("a b/föö 模型")
    place.mkdir(parents=True)
    for name in ("base", "train.csv", "eval.csv"):
        shutil.move(name, place)
    command = [
        "sweep",
        "--model",
        place / "base",
        "--train",
        place / "train.csv",
        "--eval",
        place / "eval.csv",
        *COLUMNS,
        *COMPUTE,
        *SMALL,
        "--r",
        "1",
        "--no-full",
        "--no-head",
        "--out",
        place / "out put",
        "--runs",
        place / "rüns",
    ]
    assert rankprobe(*command).exit_code == 0
    [record] = (place / "rüns").glob("*/run.json")
    assert (
        "模型" not in record.read_text(encoding="utf-8")
        and pd.read_csv(place / "out put/tables/runs.csv").shape[0] == 1
    )


def test_a_name_that_is_no_unicode(bench):
    name = os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree("base", name)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    shutil.copy("train.csv", f"{name}.csv")
    assert rankprobe(*FINETUNE, "--train", f"{name}.csv").exit_code == 0
    refused(rankprobe(*FINETUNE, "--train", f"no{name}.csv"), 2, "must be a file")
    refused(rankprobe(*FINETUNE, "--r", "3", "--model", name), 2, "must have a path that is Unicode")
    assert len(list(Path("runs").glob("*/run.json"))) == 1


def test_where_the_command_is_run_from_changes_nothing_but_the_folders(bench, monkeypatch):
    assert rankprobe(*FINETUNE).exit_code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    command = [
        "finetune",
        "--model",
        "../base",
        "--train",
        bench / "train.csv",
        "--eval",
        "../eval.csv",
        *COLUMNS,
        *COMPUTE,
        *SMALL,
        "--lr",
        "1e-3",
    ]
    assert rankprobe(*command).exit_code == 0
    here, there = ([*folder.glob("*/predictions.csv")] for folder in (Path("runs"), bench / "runs"))
    assert [p.parent.name for p in here] == [p.parent.name for p in there] and here[0].read_bytes() == there[
        0
    ].read_bytes()


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 130), ("roberta", 128), ("gpt2", 130), ("llama", None), ("deberta-v2", None)]
)
def test_texts_longer_than_the_models_positions(bench, kind, positions):
    """Models with position embeddings refuse one token more than these; others take any length."""
    make_tiny(kind, "long")
    for seed, name in enumerate(("train.csv", "eval.csv")):
        csv(name, [(" ".join(texts(30, 8 * seed + i)), ("neg", "pos")[i % 2]) for i in range(8)])
    command = [*FINETUNE, "--model", "long", "--max-length"]
    if positions is None:
        assert rankprobe(*command, 150).exit_code == 0
    else:
        assert rankprobe(*command, positions).exit_code == 0
        refused(
            rankprobe(*command, positions + 1),
            2,
            f"at most {positions}, the positions of the model. Got {positions + 1}",
        )


@pytest.mark.parametrize("kind", ["regression", "three labels", "latin-1", "jsonl pair", "no header"])
def test_files_of_every_kind_are_taken(bench, kind):
    options, rows = [*COLUMNS], [(text, ("neg", "pos")[i % 2]) for i, text in enumerate(texts(24))]
    train, evaluation = "t.csv", "e.csv"
    for name in (train, evaluation):
        if kind == "regression":
            csv(name, [(text, i / 7) for i, (text, _) in enumerate(rows)])
            options = [*COLUMNS, "--regression"]
        elif kind == "three labels":
            csv(name, [(text, ("ärger", "-1", "gut so")[i % 3]) for i, (text, _) in enumerate(rows)])
        elif kind == "latin-1":
            csv(name, [(f"caf\xe9 {text}", label) for text, label in rows], encoding="latin-1")
            options = [*COLUMNS, "--encoding", "latin-1"]
        elif kind == "no header":
            csv(name, rows, header="")
            options = ["--text", "0", "--label", "1", "--no-header"]
        else:
            lines = [json.dumps({"a": text, "b": text[::-1], "y": i % 2}) for i, (text, _) in enumerate(rows)]
            Path(name := name.replace("csv", "jsonl")).write_text("\n".join(lines))
            train, evaluation = "t.jsonl", "e.jsonl"
            options = ["--text", "a", "--text-b", "b", "--label", "y"]
    result = rankprobe(
        "finetune", "--model", "base", "--train", train, "--eval", evaluation, *options, *COMPUTE, *SMALL
    )
    assert result.exit_code == 0 and "on 24 rows of files (eval rows)" in result.stdout
    assert ("pearson" if kind == "regression" else "accuracy") in result.stdout


def test_a_whole_sweep_with_pictures_twice_does_no_work_the_second_time(bench, monkeypatch):
    command = [*SWEEP, "--r", "1", "--no-head", "--out", "out"]
    assert rankprobe(*command).exit_code == 0
    assert Path("out/report.html").stat().st_size > 10_000 and list(Path("out/figures").glob("*.svg"))
    assert list(Path("runs").glob("full-*/functional_rank.csv"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path("runs").rglob("*") if path.is_file()}
    monkeypatch.setattr("rankprobe.report.report.write_pages", lambda *args, **kwargs: None)  # seconds
    assert rankprobe(*command).exit_code == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("runs").rglob("*") if p.is_file()} == before

"""sweep --pack where one of its models cannot be packed: auto finds out before, and off is the way out after."""

import json
from pathlib import Path

import pytest

from rankprobe.experiment.store import finished
from tests.cli.lab import COMPUTE, FILES, rankprobe, refused
from tests.tiny_models import make_tiny

COMMAND = ("sweep", "both.toml", *FILES, *COMPUTE, "--drop-weights", "--out", "out")


@pytest.fixture
def both(bench, no_pictures):
    """A study of DeBERTa, whose layers also project relative positions, and then of BERT."""
    make_tiny("deberta-v2", bench / "deberta")
    Path("both.toml").write_text(
        'task = "files"\ntruncate = []\nmax_length = 16\nepochs = 1\nmodel = ["deberta", "base"]\n'
        'configurations = [{ method = "lora", r = [1, 2], lr = 1e-3 }]'
    )


def planned_pack():
    return json.loads(Path("out/plan.json").read_text())["pack"]


def test_auto_tries_every_model(both):
    result = rankprobe(*COMMAND, "--pack", "auto")
    assert result.exit_code == 0, result.output
    assert "rankprobe: deberta on files" in result.stderr and "all runs are done one by one" in result.stderr
    assert planned_pack() == 1 and len([run for run in Path("runs").iterdir() if finished(run)]) == 4


def test_a_size_that_cannot_be_done_gives_way_to_off(both):
    refused_late = rankprobe(*COMMAND, "--pack", "8")
    assert refused_late.exit_code == 2 and "Do its runs one by one: --pack off" in refused_late.stderr
    assert planned_pack() == 8
    result = rankprobe(*COMMAND, "--pack", "off")
    assert result.exit_code == 0, result.output
    assert planned_pack() == 1


def test_not_once_a_run_has_ended_in_a_pack(both):
    text = Path("both.toml").read_text()
    Path("both.toml").write_text(text.replace('["deberta", "base"]', '["base", "deberta"]'))
    assert rankprobe(*COMMAND, "--pack", "8").exit_code == 2
    refused(rankprobe(*COMMAND, "--pack", "off"), 2, "Got off. Leave it out, or pass --pack off with another --out")
    assert rankprobe(*COMMAND[:-1], "other", "--pack", "off").exit_code == 0

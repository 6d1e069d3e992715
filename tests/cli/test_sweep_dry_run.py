"""sweep --dry-run on a store that holds some of the work: it says what the same command without it would do."""

import json
from pathlib import Path

from tests.cli.lab import SWEEP, rankprobe

SMALL = (*SWEEP, "--r", "2", "--seeds", "1", "--out", "out")


def dry(*arguments):
    result = rankprobe(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_runs_that_dropped_weights_which_are_asked_for_are_not_done(bench, no_pictures):
    command = (*SMALL, "--no-head")
    assert rankprobe(*command, "--drop-weights").exit_code == 0
    assert "2 runs, 5 optimiser steps left" in dry(*command), "full, whose functional rank is to be measured"
    assert "2 runs, 10 optimiser steps left" in dry(*command, "--keep-weights")
    assert rankprobe(*command, "--keep-weights").exit_code == 0
    assert "2 runs, 0 optimiser steps left" in dry(*command, "--keep-weights")


def test_once_rates_are_chosen_the_runs_at_them_are_named(bench, no_pictures):
    command = (*SMALL, "--no-full", "--no-head", "--tune", "1,2", "--seeds", "2")
    assert "then, at the rates that these choose, 2 runs of 10 optimiser steps" in dry(*command)
    assert rankprobe(*command, "--drop-weights").exit_code == 0
    said = dry(*command)
    assert "4 runs, 0 optimiser steps left" in said and "then" not in said.split("]", 1)[1] and "about" not in said
    assert "4 runs, 10 optimiser steps left" in dry(*command, "--keep-weights"), "those that choose rates keep none"
    next(Path("runs").glob("*-eval-s1-*/run.json")).unlink()
    assert "4 runs, 5 optimiser steps left" in dry(*command)
    next(Path("runs").glob("*-tuning-*/run.json")).unlink()
    assert "then, at the rates that these choose, 2 runs of 10 optimiser steps" in dry(*command)


def test_that_no_rate_can_be_chosen_is_said(bench, no_pictures):
    command = (*SMALL, "--no-full", "--no-head", "--tune", "1e9,2e9")
    assert rankprobe(*command).exit_code == 1
    assert all(json.loads(path.read_text())["status"] == "diverged" for path in Path("runs").glob("*/run.json"))
    result = rankprobe(*command, "--dry-run")
    assert result.exit_code == 0 and "2 runs, 0 optimiser steps left" in result.stdout
    assert "rankprobe: warning: A rate of" in result.stderr

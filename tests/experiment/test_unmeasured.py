"""A measurement beside the trainings that comes to nothing: what is kept of it, and what is not."""

import gc
import weakref
from types import SimpleNamespace

import pytest

from rankprobe.errors import UsageError
from rankprobe.experiment.store import lock
from rankprobe.experiment.unmeasured import Unmeasured, bare, guarded, say_once, unless_given_up, unmeasured


class Model:
    """Stands for a GPU's memory."""


def failing(models, error):
    model = Model()
    models.append(weakref.ref(model))
    yield "first"
    raise error


def test_what_was_given_up_holds_no_model(tmp_path):
    models, given_up = [], []
    file = tmp_path / "latency-error.txt"
    work = guarded(failing(models, RuntimeError("CUDA out of memory")), "latency", file)
    assert list(unless_given_up(work, given_up)) == ["first"]
    [error] = given_up
    assert f"latency must be measured. Got RuntimeError: CUDA out of memory. See {file}" in str(error)
    assert "CUDA out of memory" in file.read_text() and file.read_text().startswith("Traceback")
    del work
    gc.collect()
    assert models[0]() is None, "its frames are kept with the error"


def test_what_is_held_elsewhere_is_given_up_too_and_a_users_mistake_is_not(tmp_path):
    given_up = []

    def held():
        with lock(tmp_path):
            yield

    with lock(tmp_path):
        assert list(unless_given_up(guarded(held(), "latency", tmp_path / "error.txt"), given_up)) == []
    assert len(given_up) == 1 and not (tmp_path / "error.txt").exists()
    with pytest.raises(UsageError, match="r must be"):
        list(unless_given_up(guarded(failing([], UsageError("r must be 1")), "latency", tmp_path / "error.txt"), []))


def test_what_is_not_begun_leaves_the_earlier_error_where_it_is(tmp_path):
    file = tmp_path / "latency-r8" / "error.txt"
    with pytest.raises(Unmeasured), unmeasured("latency", file):
        raise MemoryError
    with unmeasured("latency", file):
        pass  # nothing to do now
    assert "MemoryError" in file.read_text()


def test_a_reason_is_said_once():
    lines = []
    error = Unmeasured("latency must be measured.")
    for _ in range(2):
        say_once(bare(error), SimpleNamespace(say=lines.append))
    assert lines == ["rankprobe: warning: latency must be measured."]

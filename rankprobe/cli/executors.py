"""``--jobs`` and ``--executor``: who does a command's runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must

if TYPE_CHECKING:
    from rankprobe.experiment.executors import Executor


def check_executor(options: dict) -> None:
    """Refuse options that do not go together, before anything is planned.

    Parameters
    ----------
    options : dict
        ``jobs``, and where the command has them ``executor`` and ``address``.

    Raises
    ------
    UsageError
    """
    on_ray = options.get("executor") == "ray"
    if on_ray and options["jobs"] is not None:
        next_step = "Leave it out: Ray does as many runs at once as fit, each with --threads"
        raise UsageError(must("--jobs", "be left out with --executor ray", options["jobs"], next_step))
    if options.get("address") is not None and not on_ray:
        raise UsageError(must("--address", "come with --executor ray", options["address"], "Pass both, or none"))
    if on_ray:
        from rankprobe.experiment.on_ray import import_ray

        import_ray()


@contextlib.contextmanager
def executor(options: dict) -> Iterator[Executor]:
    """What does a command's runs: this process, several, or a Ray cluster; it is given back after the block."""
    if options.get("executor") == "ray":
        from rankprobe.experiment.on_ray import connect

        with connect(options["address"]) as cluster:
            yield cluster
    elif (options["jobs"] or 1) > 1:
        from rankprobe.experiment.jobs import Jobs

        with Jobs(options["jobs"]) as jobs:
            yield jobs
    else:
        from rankprobe.experiment.executors import IN_TURN

        yield IN_TURN

"""``study.toml``: studies as a file, one screen, every key checked."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path

from rankprobe.errors import UsageError, must, nearest
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.spec import METHODS
from rankprobe.experiment.study import Study, parse_configuration
from rankprobe.weights.rank_pattern import RankPattern, canonical_pattern

# What a file may give several of: one study for each combination, since no table has two models or two tasks.
_SEVERAL = ("model", "task")


def load_studies(path: Path, *, model: str | None = None) -> tuple[Study, ...]:
    """Read ``study.toml``: one study for each combination of the models and tasks that it lists, in that order.

    Where a value in ``configurations`` is a list, all combinations are meant.

    Parameters
    ----------
    path : Path
    model : str, optional
        ``--model``, for a file that names none.

    Raises
    ------
    UsageError
        If the file is missing or not TOML, a key is unknown (the nearest valid one is named), a value is of the
        wrong type, or a model is passed beside the file's own.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows' editors write a byte-order mark
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise UsageError(must("study", "be a TOML file", got, "Pass studies/NAME/study.toml")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(must(f"{path}", "be TOML", error, "Correct the file")) from None
    table.setdefault("name", Path(path).resolve().parent.name if Path(path).name == "study.toml" else Path(path).stem)
    for key in _SEVERAL:
        if table.get(key) == []:
            raise UsageError(must(f"{key} in {path}", "have a value", "an empty list", "Leave it out for the default"))
    if model is not None:
        if "model" in table:
            named = ", ".join(map(str, table["model"])) if isinstance(table["model"], list) else table["model"]
            got = f"{model} beside {path}, which has {named}"
            raise UsageError(must("--model", "be left out where a study file names one", got, "Leave it out"))
        table["model"] = model
    one_each = _combinations({key: table[key] for key in _SEVERAL if key in table})
    return tuple(dict.fromkeys(study_from({**table, **one}, str(path)) for one in one_each))


def load_study(path: Path) -> Study:
    """The study of a file that has one model and one task; as :func:`load_studies`.

    Raises
    ------
    UsageError
        If it lists several.
    """
    studies = load_studies(path)
    if len(studies) > 1:
        got = f"{len(studies)} combinations"
        raise UsageError(must(f"{path}", "have one model and one task", got, "Write a file for each"))
    return studies[0]


def study_from(table: Mapping, where: str) -> Study:
    """A study from parsed TOML; ``where`` names the file in errors."""
    table = dict(table)
    configurations = []
    rows = table.pop("configurations", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(
            must(f"configurations in {where}", "be a list of tables", repr(rows), "Write [[configurations]] above each")
        )
    for row in rows:
        _check_keys(Configuration, row, where)
        if "method" not in row:
            next_step = f"Add one of {', '.join(METHODS)}"
            raise UsageError(must(f"a configuration in {where}", "have a method", row, next_step))
        if empty := [key for key, value in row.items() if value == []]:
            next_step = "Leave it out for the default"
            raise UsageError(must(f"{empty[0]} in {where}", "have a value", "an empty list", next_step))
        if isinstance(row.get("seeds"), list):
            next_step = "Pass seeds = 3, say; they begin with the study's seed"
            raise UsageError(must(f"seeds in {where}", "be how many seeds, not which", repr(row["seeds"]), next_step))
        for combination in _combinations(row):
            pattern = read_rank_pattern(combination.pop("rank_pattern", None), where)
            settings = _checked(Configuration, combination, where)
            configurations.append(Configuration(**settings, rank_pattern=pattern))
    study = Study(configurations=tuple(configurations), **_checked(Study, table, where))
    for text in study.truncate if "truncate" in table else ():
        if parse_configuration(text) not in {(c.method, c.r) for c in configurations}:
            raise UsageError(
                must(
                    f"truncate in {where}",
                    "name configurations of the study",
                    repr(text),
                    "Correct it, or add that one",
                )
            )
    return study


def read_rank_pattern(value: object, where: str = "") -> RankPattern | None:
    """A configuration's r by matrix: a table of them, or a JSON file of one, as ``rankprobe allocate`` writes it.

    Parameters
    ----------
    value : mapping of str to int, str or None
        A file's path is relative to the study file.
    where : str
        The study file.

    Raises
    ------
    UsageError
        If the file is missing, not JSON, or holds something else.
    """
    if value is None or isinstance(value, Mapping):
        return None if value is None else canonical_pattern(value)
    what, next_step = f"rank_pattern in {where}" if where else "rank_pattern", "Pass rank_pattern.json of an allocation"
    if not isinstance(value, str | Path):
        raise UsageError(must(what, "be a table of r by matrix, or the path of a JSON file", repr(value), next_step))
    path = Path(where).parent / value
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(must(what, "be a JSON file", f"{path} ({error.strerror})", next_step)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(must(f"{path}", "be JSON", error, next_step)) from None
    if not isinstance(table, dict) or "peft_type" in table:
        got = "PEFT's config, which does not name what stays as it is" if isinstance(table, dict) else "a list or value"
        raise UsageError(must(f"{path}", "hold one r for each matrix", got, next_step))
    return canonical_pattern(table)


def _combinations(row: Mapping) -> list[dict]:
    out = [{}]
    for key, value in row.items():
        # A grid of rates is one value: what is compared is the configuration at the rate that is chosen from it.
        values = value if isinstance(value, list) and key != "lr_grid" else [value]
        out = [{**o, key: v} for o in out for v in values]
    return out


def _checked(cls, table: Mapping, where: str) -> dict:
    """The table, with its keys and value types checked against the dataclass."""
    _check_keys(cls, table, where)
    hints = typing.get_type_hints(cls)
    out = {}
    for key, value in table.items():
        hint = hints[key]
        if typing.get_origin(hint) is tuple:
            out[key] = _checked_list(key, value, typing.get_args(hint)[0], where)
            continue
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if float in allowed and type(value) is int:
            value = float(value)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(a.__name__ for a in allowed if a is not type(None))
            raise UsageError(must(f"{key} in {where}", f"be {names}", repr(value), "Correct the file"))
        out[key] = value
    return out


def _check_keys(cls, table: Mapping, where: str) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    elsewhere = [] if cls is Configuration else [f.name for f in dataclasses.fields(Configuration)]
    for key in table:
        if key not in known:
            next_step = f"Put {key} into configurations" if key in elsewhere else nearest(key, known)
            raise UsageError(must(f"key in {where}", f"be one of {', '.join(known)}", key, next_step))


def _checked_list(key: str, value: object, kind: type, where: str) -> tuple:
    """A list whose values are all of one type; whole numbers may stand for others."""
    kinds = (int, float) if kind is float else (kind,)
    whole = isinstance(value, list) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)
    if not whole:
        names = "a list of numbers" if kind is float else "a list of texts"
        raise UsageError(must(f"{key} in {where}", f"be {names}", repr(value), "Correct the file"))
    return tuple(kind(v) for v in value)


def study_toml(study: Study) -> str:
    """A study as ``study.toml`` would say it: what differs from the defaults, so that it fits on a screen.

    :func:`load_study` reads the same study back, but for the name, which a folder gives.

    Parameters
    ----------
    study : Study
    """
    lines = [
        f"{f.name} = {_toml(value)}"
        for f in dataclasses.fields(Study)
        if f.name not in ("name", "configurations") and (value := getattr(study, f.name)) != _default(f)
    ]
    rows = []
    for configuration in study.configurations:
        given = {
            f.name: value
            for f in dataclasses.fields(Configuration)
            if (value := getattr(configuration, f.name)) != _default(f)
        }
        if given.get("alpha") == 2 * (configuration.r or 0):
            del given["alpha"]
        rows.append("{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in given.items()) + " }")
    return "\n".join([*lines, "configurations = [", *(f"  {row}," for row in rows), "]"]) + "\n"


def _default(f: dataclasses.Field) -> object:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _toml(value: object) -> str:
    """A value in TOML: JSON's strings and numbers are also TOML's."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):  # a rank pattern
        return "{ " + ", ".join(f"{json.dumps(key)} = {r}" for key, r in value) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # 1e-05 is a float of TOML as it is, and 16.0 keeps its point.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)

"""The index of a model in several shards: which file holds which parameter. Nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from rankprobe.errors import UsageError, must

INDEX_END = ".index.json"
_AGAIN = "Fetch or save the model again"


def read_index(file: Path) -> dict[str, str]:
    """Parameter names and the shards they lie in, of a ``*.index.json``.

    Parameters
    ----------
    file : Path
        Its shards lie beside it or below; a link in the folder may lead anywhere, as in the hub's cache.

    Returns
    -------
    dict of str to str
        Parameter name to the shard's path, relative to the index's folder.

    Raises
    ------
    UsageError
        If it is no index, names a path outside its folder, names a parameter twice, or a shard is missing.
    """
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        got = " ".join(str(error).split())[:160]
        raise UsageError(must(f"{file}", "be a weight index in JSON", got, _AGAIN)) from None
    index = parsed.get("weight_map") if isinstance(parsed, dict) else None
    shards = list(index.values()) if isinstance(index, dict) else []
    if not shards or not all(isinstance(shard, str) and shard for shard in shards):
        rule = "be a weight index"
        raise UsageError(must(f"{file}", rule, "no weight_map of parameters to shards", _AGAIN))
    for shard in sorted(set(shards)):
        posix, windows = PurePosixPath(shard), PureWindowsPath(shard)
        if posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts) or not shard.isprintable():
            rule = "name shards inside its own folder"
            raise UsageError(must(f"{file}", rule, repr(shard)[:160], _AGAIN))
        try:
            there = (file.parent / shard).is_file()
        except OSError:  # a name too long for the file system
            there = False
        if not there:
            got = f"no {shard[:160]} in {file.parent}, which {file.name} names"
            raise UsageError(must("The model's weights", "be whole", got, "Fetch the shard that is missing"))
    return index


def check_index(file: Path, index: Mapping[str, str], found: Mapping[str, Path], tied: Collection[str] = ()) -> None:
    """Check that every parameter of an index is in the shard that the index names.

    Parameters
    ----------
    file : Path
        The index.
    index : mapping of str to str
        From :func:`read_index`.
    found : mapping of str to Path
        Where each tensor was found.
    tied : collection of str
        Names that may be missing: their tensor lies under another name.

    Raises
    ------
    UsageError
        If one is elsewhere or nowhere.
    """
    for name, shard in index.items():
        there = found.get(name)
        if there == file.parent / shard or (there is None and name in tied):
            continue
        got = f"{name[:160]!r} not in {shard}" + (f" but in {there.name}" if there is not None else "")
        raise UsageError(must(f"{file}", "name the shard that a parameter lies in", got, _AGAIN))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice[:160]!r} stands twice")
    return names

"""Models and adapters on the Hugging Face hub and in its cache. huggingface_hub is imported where it is needed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.weights.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TOKENIZER_SETTINGS,
    VOCABULARY_FILES,
    WEIGHT_FILES,
    one_line,
)
from rankprobe.weights.shards import INDEX_END

HUB_TIMEOUT_S = 5.0


def could_be_hub_name(name: str) -> bool:
    """Whether the hub's rules for names allow it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def cached_folder(name: str, revision: str | None, file: str = "config.json") -> Path | None:
    """The hub cache's snapshot of a repository, where it holds ``file``; other files may be missing."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def download(
    name: str,
    revision: str | None,
    *,
    offline: bool,
    adapter: bool = False,
    what: str = "The model",
    instead: str = "pass the folder of a copy",
) -> Path:
    """Fetch config, weights and tokenizer of a hub model, nothing else.

    Parameters
    ----------
    name : str
    revision : str or None
        A commit; None for the main branch.
    offline : bool
    adapter : bool
        Of a repository that holds a PEFT adapter take that.
    what : str
        For messages.
    instead : str
        For messages: where else it could come from.

    Raises
    ------
    UsageError
        If there is no such repository, it is gated, or the hub is switched off.
    WorkError
        If the hub does not answer.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    here = "no folder or run here" if adapter else "no folder"  # where an adapter does, a run does, too
    elsewhere = f"Check the name, or {instead}" if "," not in instead else f"Check the name, {instead}"
    if offline or constants.HF_HUB_OFFLINE:
        got = f"{name!r}, which is {here} and not in the hub cache, while the hub is switched off"
        raise UsageError(must(what, "be on this machine", got, elsewhere))
    try:
        # One quick question first: snapshot_download on its own may retry for minutes where there is no network.
        # Both ask for the branch, not the commit, or the cache would not know next time what the name means.
        info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = (_wanted_adapter(names) if adapter else []) or _wanted_model(names)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as error:
        got = f"the gated {name!r}"
        raise UsageError(must(what, "be open to you", got, "Accept its terms and run hf auth login")) from error
    except RepositoryNotFoundError as error:
        got = f"{name!r}, which is {here} and not on the hub"
        raise UsageError(must(what, "exist", got, elsewhere)) from error
    # The bases are OSError (a full disk too) and the base error of the HTTP client, another one in each hub version.
    except HfHubHTTPError.__bases__ as error:
        got = f"{name!r}, which is {here} and not in the hub cache, and the hub's answer {one_line(error)!r}"
        raise WorkError(must(what, "be on this machine or on a hub that answers", got, elsewhere)) from error


def _wanted_model(names: Iterable[str]) -> list[str]:
    """Of a hub model's files: the first form of the weights that transformers reads, config and tokenizer."""
    names = list(names)
    wanted = [name for name in names if name in ("config.json", "merges.txt", *VOCABULARY_FILES, *TOKENIZER_SETTINGS)]
    for weights in WEIGHT_FILES:
        if weights in names:
            wanted.append(weights)
            if weights.endswith(INDEX_END):
                stem, suffix = weights.split(".")[0], "." + weights.split(".")[1]
                wanted += [name for name in names if name.startswith(f"{stem}-") and name.endswith(suffix)]
            break
    return wanted


def _wanted_adapter(names: Iterable[str]) -> list[str]:
    """Of a hub repository's files those of a PEFT adapter; none where it holds none."""
    names = set(names)
    weights = next((name for name in ADAPTER_WEIGHTS if name in names), None)
    return [ADAPTER_CONFIG, weights] if weights is not None and ADAPTER_CONFIG in names else []

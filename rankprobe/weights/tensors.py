"""Named tensors on disk, in one file or many, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights import pickle_file, safetensors_file
from rankprobe.weights.tensor_file import Stored

__all__ = ["PICKLES", "SAFETENSORS", "Stored", "TensorFiles", "open_tensors"]

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class TensorFiles:
    """Tensors in one or many files; nothing of them stays in memory or mapped between two reads.

    The exception are files in the format from before torch 1.6, which can only be read as a whole: their tensors are
    kept from the start.

    Attributes
    ----------
    stored : dict of str to Stored
        In the files' order; tied tensors once.
    aliases : dict of str to str
        Tied names (.bin: one memory under two names) to the one that is kept.
    files : dict of str to Path
        Where each tensor lies.
    """

    def __init__(
        self,
        stored: Mapping[str, Stored],
        aliases: Mapping[str, str],
        files: Mapping[str, Path],
        held: Mapping[str, Tensor],
    ) -> None:
        self.stored, self.aliases, self.files = dict(stored), dict(aliases), dict(files)
        self._held = dict(held)

    def read(self, name: str) -> Tensor:
        """One tensor as stored, on the CPU, in memory of its own; an alias reads the tensor it is tied to.

        Raises
        ------
        KeyError
            If no tensor has that name.
        UsageError
            If the file has changed since it was opened and cannot be read any more.
        """
        name = self.aliases.get(name, name)
        if name in self._held:
            return self._held[name].detach().clone()
        stored, file = self.stored[name], self.files[name]
        read = safetensors_file.read if file.suffix == SAFETENSORS else pickle_file.read
        tensor = read(file, name)
        found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if found != (stored.shape, stored.dtype):
            got = f"{name} with shape {found[0]} in {found[1]}, before {stored.shape} in {stored.dtype}"
            raise UsageError(must(f"{file}", "stay as it was when it was opened", got, "Run it again"))
        return tensor


def open_tensors(files: Sequence[Path]) -> TensorFiles:
    """Open files of tensors; their data stays on disk.

    Parameters
    ----------
    files : sequence of Path
        ``.safetensors``, or what torch.save wrote: ``.bin``, ``.pt``, ``.pth``, ``.ckpt``, of which a state dict
        below ``state_dict``, ``model_state_dict``, ``model`` or ``module`` is found.

    Returns
    -------
    TensorFiles

    Raises
    ------
    UsageError
        If a file is missing, damaged, truncated, empty, a Git LFS pointer, of another kind, or a pickle that would run
        code (it does not run), or if a tensor is in two of them.
    """
    stored: dict[str, Stored] = {}
    aliases: dict[str, str] = {}
    where: dict[str, Path] = {}
    held: dict[str, Tensor] = {}
    for file in map(Path, files):
        if file.suffix == SAFETENSORS:
            described, tied, kept = safetensors_file.describe(file), {}, None
        elif file.suffix in PICKLES:
            described, tied, kept = pickle_file.describe(file)
        else:
            rule = f"end with {SAFETENSORS} or {', '.join(PICKLES)}"
            raise UsageError(must(f"{file}", rule, file.suffix or "no ending", "Save the weights as safetensors"))
        for name in (*described, *tied):
            if name in where:
                got = f"it in {where[name].name} and in {file.name}"
                raise UsageError(must(name, "be in one file alone", got, "Fetch or save the model again"))
            where[name] = file
        stored |= described
        aliases |= tied
        held |= kept or {}
    return TensorFiles(stored, aliases, where, held)

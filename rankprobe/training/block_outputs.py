"""Outputs of a model's blocks kept, so that a change in a late block need not compute the early ones again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_BLOCK = re.compile(r"^(.+?)\.(\d+)\.")


def find_blocks(model: nn.Module, parameters: list[str]) -> list[nn.Module] | None:
    """The stack of blocks that some parameters are in, in its order.

    Parameters
    ----------
    model : nn.Module
    parameters : list of str
        Names, ``bert.encoder.layer.0.attention.self.query.weight``.

    Returns
    -------
    list of nn.Module, or None
        None where they are in several stacks (an encoder's and a decoder's), or in none that is an ``nn.ModuleList``.
    """
    found = [_BLOCK.match(name) for name in parameters]
    stacks = {match[1] for match in found if match}
    if not all(found) or len(stacks) != 1:
        return None
    stack = model.get_submodule(stacks.pop())
    return list(stack) if isinstance(stack, nn.ModuleList) else None


class BlockOutputs:
    """What every block gave for the last batch of :meth:`record`.

    Parameters
    ----------
    blocks : list of nn.Module
        From :func:`find_blocks`.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = blocks
        self._outputs: list[object] = []

    @property
    def usable(self) -> bool:
        """Whether each block was called once, in the stack's order: blocks that share weights are one block."""
        return len({id(block) for block in self.blocks}) == len(self.blocks) == len(self._outputs)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the outputs of the one forward pass that is made inside."""
        self._outputs = []
        hooks = [block.register_forward_hook(lambda _, __, output: self._outputs.append(output))
                 for block in self.blocks]  # fmt: skip
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def skip(self, first: int) -> Iterator[None]:
        """Forward passes inside take the recorded outputs of all blocks before ``first`` instead of computing them.

        Only for the very batch that was recorded.
        """
        skipped = list(zip(self.blocks[:first], self._outputs, strict=False))
        for block, output in skipped:
            block.forward = lambda *_, output=output, **__: output
        try:
            yield
        finally:
            for block, _ in skipped:
                del block.forward

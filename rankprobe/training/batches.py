"""From texts to padded batches: encoded once, grouped by like length, in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rankprobe.tasks.task import Example

# Batches are cut from groups of this many batches sorted by length: little padding, and still random neighbours.
_GROUP = 50


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int
) -> list[dict[str, list[int]]]:
    """Token ids of every example (both texts), cut to ``max_length`` tokens, without padding."""
    if not examples:
        return []
    pairs = [e.text_b for e in examples] if examples[0].text_b is not None else None
    table = tokenizer([e.text for e in examples], pairs, truncation=True, max_length=max_length)
    keys = [k for k in ("input_ids", "token_type_ids", "attention_mask") if k in table]
    return [{k: table[k][i] for k in keys} for i in range(len(examples))]


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad encoded rows on the right to their longest, as int64 tensors of shape (batch, length)."""
    length = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for key in rows[0]:
        fill = pad_id if key == "input_ids" else 0
        out = torch.full((len(rows), length), fill, dtype=torch.long)
        for i, row in enumerate(rows):
            out[i, : len(row[key])] = torch.tensor(row[key])
        batch[key] = out
    return batch


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches, as lists of row numbers: rows of like length together, in random order.

    Rows are permuted, cut into groups of 50 batches, sorted by length inside a group, cut into batches, and the batches
    permuted. The last batch of the epoch may be short.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    batch_size, seed, epoch : int
    """
    generator = torch.Generator().manual_seed(seed * 10_007 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), _GROUP * batch_size):
        group = sorted(order[start : start + _GROUP * batch_size], key=lambda i: lengths[i])
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Every row once, longest first, for evaluation: the first batch is the one that needs the most memory."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

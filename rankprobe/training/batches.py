"""From texts to padded batches: encoded once, grouped by like length, in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.tasks.task import LANGUAGE_MODELLING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rankprobe.tasks.task import Example

# Batches are cut from groups of this many batches sorted by length: little padding, and still random neighbours.
_GROUP = 50
# Key of a row of language modelling: what each of its tokens is to be followed by, and what stands for "no matter".
TARGETS, IGNORED = "targets", -100


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, *, problem: str = "classification"
) -> list[dict[str, list[int]]]:
    """Token ids of every example (both texts), cut to ``max_length`` tokens, without padding.

    A text that a tokenizer makes no token of (an empty one, where nothing is put around texts) is its end token alone.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    examples : sequence of Example
    max_length : int
    problem : str
        ``Task.problem``; in ``language_modelling`` rows come from :func:`encode_completions`.
    """
    if not examples:
        return []
    if problem == LANGUAGE_MODELLING:
        return encode_completions(tokenizer, examples, max_length)
    pairs = [e.text_b for e in examples] if examples[0].text_b is not None else None
    table = tokenizer([e.text for e in examples], pairs, truncation=True, max_length=max_length)
    keys = [k for k in ("input_ids", "token_type_ids", "attention_mask") if k in table]
    rows = [{k: table[k][i] for k in keys} for i in range(len(examples))]
    end = tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    nothing = {"input_ids": [end], "token_type_ids": [0], "attention_mask": [1]}
    return [row if row["input_ids"] else {k: nothing[k] for k in keys} for row in rows]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int
) -> list[dict[str, list[int]]]:
    """Token ids of prompts with their completions, and what each token is to be followed by.

    A row is the tokenizer's begin token where it puts one before a text, the prompt ``text``, the completion ``text_b``
    and the end token where there is one. The completion and the end token are predicted; with an empty prompt that is
    every token after the first. Of a row that is too long, the prompt loses its beginning first, then the completion
    its end (and with it the end token), so that what is predicted always follows what was right before it.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    examples : sequence of Example
    max_length : int
        At least 2.

    Returns
    -------
    list of dict of str to list of int
        ``input_ids``, ``attention_mask`` and ``targets``, of one length: at each token the next one's id where that is
        predicted, else -100.

    Raises
    ------
    UsageError
        If a row has nothing to predict: an empty completion for a tokenizer without an end token, or one token in all.

    Notes
    -----
    Prompt and completion are tokenized apart, as in microsoft/LoRA: which tokens are predicted does not depend on how
    the two would merge. What separates them, a space too, is part of the task's texts.
    """
    if max_length < 2:
        raise UsageError(must("max_length", "be at least 2, to predict one token from another", max_length, "Raise it"))
    begin = _begin_tokens(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    settings = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    prompts = tokenizer([e.text for e in examples], **settings)["input_ids"]
    completions = tokenizer([e.text_b or "" for e in examples], **settings)["input_ids"]
    rows, empty = [], []
    for example, prompt, completion in zip(examples, prompts, completions, strict=True):
        completion = [*completion, *end][: max_length - len(begin)]
        room = max_length - len(begin) - len(completion)
        ids = [*begin, *prompt[max(0, len(prompt) - room) :], *completion]
        # The first token of all follows nothing and is never predicted.
        first = max(1, len(ids) - len(completion))
        if len(ids) <= first:
            empty.append(example.row)
        targets = [*[IGNORED] * (first - 1), *ids[first:], IGNORED]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), TARGETS: targets})
    if empty:
        got = f"{len(empty)} of {len(rows)} without, the first of them {empty[0]}"
        raise UsageError(must("Rows", "have a token to predict", got, "Remove rows with an empty text"))
    return rows


def _begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text of its own accord: GPT-2's nothing, Llama's its begin token."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []


def collate(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad encoded rows on the right to their longest, as int64 tensors of shape (batch, length)."""
    length = max(len(row["input_ids"]) for row in rows)
    batch = {}
    fills = {"input_ids": pad_id, TARGETS: IGNORED}
    for key in rows[0]:
        fill = fills.get(key, 0)
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


class RowTable:
    """Encoded rows laid end to end on a device, to cut large batches from without a loop over their rows.

    A pack of runs puts hundreds of rows through at once; :func:`collate`'s loop would then take longer than the GPU.

    Parameters
    ----------
    rows : sequence of dict
        From :func:`encode`.
    pad_id : int
    device : torch.device or str

    Attributes
    ----------
    lengths : list of int
        Tokens of each row.
    """

    def __init__(self, rows: Sequence[dict[str, list[int]]], pad_id: int, device: torch.device | str) -> None:
        self.lengths = [len(row["input_ids"]) for row in rows]
        lengths = torch.tensor(self.lengths)
        self._lengths, self._starts = lengths.to(device), (lengths.cumsum(0) - lengths).to(device)
        self._columns = {key: torch.tensor([t for row in rows for t in row[key]]).to(device) for key in rows[0]}
        self._fills = {"input_ids": pad_id, TARGETS: IGNORED}

    def batch(self, index: Sequence[int]) -> dict[str, Tensor]:
        """What :func:`collate` makes of the rows with these numbers, on the device."""
        length = max(self.lengths[i] for i in index)
        numbers = torch.tensor(index).to(self._starts.device)
        place = torch.arange(length, device=numbers.device)
        inside = place < self._lengths[numbers, None]
        at = (self._starts[numbers, None] + place).masked_fill(~inside, 0)
        return {
            key: column[at].masked_fill(~inside, self._fills.get(key, 0)) for key, column in self._columns.items()
        }

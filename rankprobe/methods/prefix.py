"""Trained tokens: new word embeddings (PreEmbed), or activations put in their place in every block (PreLayer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.blocks import transformer_blocks
from rankprobe.weights.architecture import max_positions

# Models whose first token is [CLS] and is read by a head: the new tokens come after it. Others read the last token.
_FIRST_IS_READ = ("bert", "roberta", "distilbert", "deberta", "deberta-v2", "electra", "albert", "mpnet", "modernbert")


class Trained(nn.Module):
    """Vectors that take the place of a module's input or output at some positions.

    Parameters
    ----------
    values : Tensor, shape (length, d)
        Initial values.
    at : int
        The first of their positions.
    """

    def __init__(self, values: Tensor, at: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.at = at

    def forward(self, h: Tensor) -> Tensor:
        """h, shape (batch, tokens, d), with these vectors at their positions."""
        end = self.at + len(self.values)
        own = self.values.to(h.dtype).expand(h.shape[0], -1, -1)
        return torch.cat([h[:, : self.at], own, h[:, end:]], dim=1)


class Places(nn.Module):
    """Where the new tokens are, and room for them: what a model's inputs and outputs go through.

    Parameters
    ----------
    at, length : int
    token : int
        A token that stands for them in input_ids, so that the model counts positions and looks for padding as always.
    positions : int or None
        How many the model has.
    """

    def __init__(self, at: int, length: int, token: int, positions: int | None) -> None:
        super().__init__()
        self.at, self.length, self.token, self.positions = at, length, token, positions

    def widen(self, inputs: dict) -> dict:
        """A model's keyword arguments with room for the new tokens."""
        tokens = inputs["input_ids"].shape[1]
        if self.positions is not None and tokens + self.length > self.positions:
            rule = f"leave room for {self.length} trained ones in the model's {self.positions} positions"
            raise UsageError(must("A text's tokens", rule, tokens, "Lower max_length or the prefix length"))
        fills = {"input_ids": self.token, "attention_mask": 1, "token_type_ids": 0, "labels": -100}
        return inputs | {key: self._wide(inputs[key], fill) for key, fill in fills.items() if _of_tokens(inputs, key)}

    def _wide(self, given: Tensor, fill: int) -> Tensor:
        new = given.new_full((given.shape[0], self.length), fill)
        return torch.cat([given[:, : self.at], new, given[:, self.at :]], dim=1)

    def narrow(self, logits: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of the text's own tokens."""
        return torch.cat([logits[:, : self.at], logits[:, self.at + self.length :]], dim=1)


def apply_prompt(model: nn.Module, length: int, *, seed: int) -> None:
    """PreEmbed: trained word embeddings of new tokens, in place.

    Parameters
    ----------
    model : PreTrainedModel
        With all but the head frozen; called with ``input_ids`` and keywords.
    length : int
        New tokens: behind [CLS] where a head reads that, else before the text. ``length * d`` parameters.
    seed : int
        Of the words whose embeddings they start from (Lester et al. 2021, section 3.2).

    Raises
    ------
    UsageError
        If length is below 1, or not below the model's positions.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 5.1 (PreEmbed), without infix tokens.
    """
    places = _make_room(model, length)
    embedding = model.get_input_embeddings()
    if embedding.weight.device.type == "meta":
        values = torch.empty(length, embedding.weight.shape[1], device="meta")
    else:
        values = embedding.weight.detach()[_words(model, length, seed)].float()
    embedding.trained = Trained(values, places.at)
    embedding.register_forward_hook(_replace_output)


def apply_prefix(model: nn.Module, length: int, *, seed: int) -> None:
    """PreLayer: trained activations at the places of new tokens, at the input of every block, in place.

    Parameters
    ----------
    model, length, seed
        As for :func:`apply_prompt`; ``blocks * length * d`` parameters. They start as the activations that the model
        itself has there for random words.

    Raises
    ------
    UsageError
        As for :func:`apply_prompt`.

    Notes
    -----
    PEFT's prefix tuning (Li & Liang 2021) trains keys and values of every block instead, twice as many parameters.
    These activations give it some: their projections by the frozen block.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 5.1 (PreLayer), without infix tokens.
    """
    blocks = [block for _, block in transformer_blocks(model)]
    on_meta = model.get_input_embeddings().weight.device.type == "meta"
    if not on_meta:
        check_prefix(model, length)
        found = _activations(model, blocks, _words(model, length, seed))
    places = _make_room(model, length)
    for i, block in enumerate(blocks):
        values = torch.empty(length, model.config.hidden_size, device="meta") if on_meta else found[i]
        block.trained = Trained(values, places.at)
        block.register_forward_pre_hook(_replace_input, with_kwargs=True)


def check_prefix(model: nn.Module, length: int, max_length: int = 1) -> None:
    """Refuse a number of new tokens that texts of ``max_length`` tokens leave no room for.

    Raises
    ------
    UsageError
    """
    if length < 1:
        raise UsageError(must("prefix_length", "be at least 1", length, "Pass 16, say"))
    positions = max_positions(model)
    if positions is not None and length + max_length > positions:
        rule = f"be at most {positions - max_length}, what texts of {max_length} tokens leave of {positions} positions"
        raise UsageError(must("prefix_length", rule, length, "Lower it, or max_length"))


def _make_room(model: nn.Module, length: int) -> Places:
    check_prefix(model, length)
    if hasattr(model, "trained_places"):
        raise UsageError(must("A model", "have one prefix or prompt", "a second one", "Apply one method at a time"))
    at = int(model.config.model_type in _FIRST_IS_READ)
    ends = (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id)
    token = next(i for i in range(len(ends) + 1) if i not in ends)
    model.trained_places = Places(at, length, token, max_positions(model))
    model.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    model.register_forward_hook(_narrow_logits)
    return model.trained_places


# Hooks find what they need in the module that they are called for, so that a deep copy of a model has its own.
def _widen_inputs(model: nn.Module, args: tuple, inputs: dict) -> tuple[tuple, dict]:
    return args, model.trained_places.widen(inputs)


def _narrow_logits(model: nn.Module, args: tuple, output):
    logits = getattr(output, "logits", None)
    if logits is not None and logits.ndim == 3:
        output.logits = model.trained_places.narrow(logits)
    return output


def _replace_output(embedding: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return embedding.trained(output)


def _replace_input(block: nn.Module, args: tuple, inputs: dict) -> tuple[tuple, dict]:
    if args:
        return (block.trained(args[0]), *args[1:]), inputs
    return args, inputs | {"hidden_states": block.trained(inputs["hidden_states"])}


def _of_tokens(inputs: dict, key: str) -> bool:
    """Whether an argument is there and has one entry a token; labels of a classifier have one a text."""
    return inputs.get(key) is not None and inputs[key].ndim == 2


def _words(model: nn.Module, length: int, seed: int) -> Tensor:
    rows = model.get_input_embeddings().num_embeddings
    drawn = torch.randint(rows, (length,), generator=torch.Generator().manual_seed(seed))
    return drawn.to(model.get_input_embeddings().weight.device)


@torch.no_grad()
def _activations(model: nn.Module, blocks: list[nn.Module], words: Tensor) -> list[Tensor]:
    """What every block is given for a text of these words, each of shape (length, d), float32."""
    seen: list[Tensor] = []

    def keep(block: nn.Module, args: tuple, inputs: dict) -> None:
        seen.append((args[0] if args else inputs["hidden_states"])[0].float())

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    training = model.training
    try:
        model.eval()
        model.base_model(input_ids=words[None], attention_mask=torch.ones_like(words[None]))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [h.clone() for h in seen]

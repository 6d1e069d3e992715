"""Trained tokens: new word embeddings (PreEmbed), or activations put in their place in every block (PreLayer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.blocks import transformer_blocks
from rankprobe.weights.architecture import max_positions


class Places(nn.Module):
    """Where the new tokens are, and room for them: what a model's inputs and outputs go through.

    Parameters
    ----------
    at, length : int
    token : int
        A token that stands for them in input_ids, so that the model counts positions and looks for padding as always.
    positions : int or None
        How many the model has.
    language_model : bool
        Whether the model's logits are a token's, not a text's.

    Attributes
    ----------
    wide : bool
        Whether a forward pass with the new tokens in it is under way: outside of one, and in the later steps of a
        generation, whose cache has them already, nothing is replaced.
    tokens : int
        Of the text in that pass.
    embedded : bool
        Whether its word embeddings have been looked up (GPT-2 looks token types up in the same table).
    """

    def __init__(self, at: int, length: int, token: int, positions: int | None, language_model: bool) -> None:
        super().__init__()
        self.at, self.length, self.token, self.positions = at, length, token, positions
        self.language_model = language_model
        self.wide, self.tokens, self.embedded = False, 0, False

    def widen(self, inputs: dict) -> dict:
        """A model's keyword arguments with room for the new tokens.

        Raises
        ------
        UsageError
            If there are no token ids, or the new tokens and these are more than the model has positions.
        """
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        if ids is None:
            given = ", ".join(inputs) or "nothing"
            raise UsageError(must("A model with trained tokens", "be given input_ids", given, "Pass token ids"))
        seen = cache.get_seq_length() if cache is not None else 0  # with the new tokens, once they are in it
        self.tokens = ids.shape[1]
        if self.positions is not None and self.tokens + (seen or self.length) > self.positions:
            rule = f"leave room for {self.length} trained ones in the model's {self.positions} positions"
            got = self.tokens + max(0, seen - self.length)
            raise UsageError(must("A text's tokens", rule, got, "Lower max_length or the prefix length"))
        self.wide, self.embedded = seen == 0, False
        widened = dict(inputs)
        fills = {"attention_mask": 1}
        if self.wide:
            fills |= {"input_ids": self.token, "token_type_ids": 0}
            if self.language_model and inputs.get("labels") is not None:
                # The text's first token is not predicted, as without the new tokens.
                widened["labels"] = inputs["labels"].clone()
                widened["labels"][:, 0] = fills["labels"] = -100
        for key, fill in fills.items():
            if widened.get(key) is not None:
                widened[key] = self._wide(widened[key], fill)
        if inputs.get("position_ids") is not None:
            widened["position_ids"] = self._moved(inputs["position_ids"])
        return widened

    def _wide(self, given: Tensor, fill: int) -> Tensor:
        new = given.new_full((given.shape[0], self.length), fill)
        return torch.cat([given[:, : self.at], new, given[:, self.at :]], dim=1)

    def _moved(self, positions: Tensor) -> Tensor:
        """Position ids of the text behind the new tokens, with theirs while the pass is wide."""
        if not self.wide:
            return positions + self.length
        first = positions[:, self.at - 1 : self.at] + 1 if self.at else torch.zeros_like(positions[:, :1])
        new = first + torch.arange(self.length, device=positions.device)
        return torch.cat([positions[:, : self.at], new, positions[:, self.at :] + self.length], dim=1)


class Trained(nn.Module):
    """Vectors that take the place of a module's input or output at the new tokens.

    Parameters
    ----------
    values : Tensor, shape (length, d)
        Initial values.
    places : Places
    """

    def __init__(self, values: Tensor, places: Places) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.places = places

    def forward(self, h: Tensor) -> Tensor:
        """h, shape (batch, tokens, d), with these vectors in their places."""
        at = self.places.at
        own = self.values.to(h.dtype).expand(h.shape[0], -1, -1)
        return torch.cat([h[:, :at], own, h[:, at + len(self.values) :]], dim=1)


def apply_prompt(model: nn.Module, length: int, *, seed: int) -> None:
    """PreEmbed: trained word embeddings of new tokens, in place.

    Parameters
    ----------
    model : PreTrainedModel
        With all but the head frozen. It is called as before, with ``input_ids``; logits are those of the text's tokens.
    length : int
        New tokens: behind the first token ([CLS]) where a classifier reads that, else before the text. ``length * d``
        parameters, d the width of the word embeddings.
    seed : int
        Of the words whose embeddings they start from: any of the vocabulary, where Lester et al. (2021,
        arXiv:2104.08691) take common ones.

    Raises
    ------
    UsageError
        If length is below 1, or not below the model's positions; or the model is no single stack of blocks.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 5.1 (PreEmbed), without infix tokens.
    """
    transformer_blocks(model)
    places = _make_room(model, length)
    embedding = model.get_input_embeddings()
    if embedding.weight.device.type == "meta":
        values = torch.empty(length, embedding.weight.shape[1], device="meta")
    else:
        with torch.no_grad():
            values = embedding(_words(model, length, seed)).float()  # Gemma's embeddings scale what they look up
    embedding.trained = Trained(values, places)
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
    PEFT's prefix tuning (Li & Liang 2021, arXiv:2101.00190) trains keys and values of every block instead, twice as
    many parameters. These activations give it some: their projections by the frozen block.

    What lies beside the blocks (a convolution in DeBERTa-v2 XXL) has the stand-in token's embedding in their places.

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
        block.trained = Trained(values, places)
        block.register_forward_pre_hook(_replace_input, with_kwargs=True)


def check_prefix(model: nn.Module, length: int, max_length: int = 1) -> None:
    """Refuse a number of new tokens that texts of ``max_length`` tokens leave no room for.

    A model that computes its positions (rotary, relative) has no last one; there the context that it was made for
    bounds the new tokens alone.

    Raises
    ------
    UsageError
    """
    if length < 1:
        raise UsageError(must("prefix_length", "be at least 1", length, "Pass 16, say"))
    positions, context = max_positions(model), getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length + max_length > positions:
        rule = f"be at most {positions - max_length}, what texts of {max_length} tokens leave of {positions} positions"
        raise UsageError(must("prefix_length", rule, length, "Lower it, or max_length"))
    if positions is None and context and 0 < context <= length:
        rule = f"be at most {context - 1}, less than the model's context"
        raise UsageError(must("prefix_length", rule, length, "Lower it"))


def _make_room(model: nn.Module, length: int) -> Places:
    check_prefix(model, length)
    if hasattr(model, "trained_places"):
        raise UsageError(must("A model", "have one prefix or prompt", "a second one", "Apply one method at a time"))
    language_model = model.get_output_embeddings() is not None
    # Decoders read a text's last token, by a layer called score; encoders read its first, or all of them.
    at = 0 if language_model or hasattr(model, "score") else 1
    ends = [getattr(model.config, f"{name}_token_id", None) for name in ("pad", "eos", "bos")]
    token = next(i for i in range(len(ends) + 1) if i not in ends)
    model.trained_places = Places(at, length, token, max_positions(model), language_model)
    model.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    model.register_forward_hook(_narrow_logits, always_call=True)
    return model.trained_places


# Hooks find what they need in the module that they are called for, so that a deep copy of a model has its own.
def _widen_inputs(model: nn.Module, args: tuple, inputs: dict) -> tuple[tuple, dict]:
    if len(args) > 1:
        got = f"{len(args)} values without a name"
        raise UsageError(must("A model with trained tokens", "be called by keyword", got, "Name them"))
    return (), model.trained_places.widen({"input_ids": args[0], **inputs} if args else inputs)


def _narrow_logits(model: nn.Module, args: tuple, output):
    places = model.trained_places
    # From the end: generation asks for the last logits only. There is no output where the pass failed.
    if places.wide and places.language_model and output is not None:
        output.logits = output.logits[:, -places.tokens :]
    places.wide = False
    return output


def _replace_output(embedding: nn.Module, args: tuple, output: Tensor) -> Tensor:
    places = embedding.trained.places
    if not places.wide or places.embedded:
        return output
    places.embedded = True
    return embedding.trained(output)


def _replace_input(block: nn.Module, args: tuple, inputs: dict) -> tuple[tuple, dict]:
    if not block.trained.places.wide:
        return args, inputs
    if args:
        return (block.trained(args[0]), *args[1:]), inputs
    return args, inputs | {"hidden_states": block.trained(inputs["hidden_states"])}


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

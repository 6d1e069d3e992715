"""Bottleneck adapters: small layers added to a frozen base, after Houlsby et al. (two a block) and Lin et al. (one)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.blocks import transformer_blocks
from rankprobe.weights.architecture import model_config, model_shapes, weight_sites

PLACEMENTS = ("houlsby", "lin")
# Houlsby et al. 2019: near-identity initialisation, a normal distribution cut at two standard deviations.
_SPREAD = 1e-2


class Bottleneck(nn.Module):
    """``h + up(f(down(norm(h))))``, two linear layers with biases and a nonlinearity between.

    Parameters
    ----------
    d : int
        Width of h.
    bottleneck : int
    own_norm : bool
        Whether it has a layer norm of its own in front, as Lin's has; f is then ReLU, else GELU, as in the authors'
        code (zlinao/VGLM; google-research/adapter-bert, whose GELU is the tanh approximation, where this is exact).
    generator : torch.Generator
        For the first layer; the second is zero at start, so that the adapter is the identity.
    device : torch.device
    """

    def __init__(self, d: int, bottleneck: int, own_norm: bool, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.norm = nn.LayerNorm(d, device=device) if own_norm else None
        # Without torch's own initial values, which would be drawn from the global random state.
        self.down = nn.utils.skip_init(nn.Linear, d, bottleneck, device=device)
        self.up = nn.utils.skip_init(nn.Linear, bottleneck, d, device=device)
        self.activation = F.relu if own_norm else F.gelu
        if device.type != "meta":
            drawn = torch.empty(bottleneck, d)
            nn.init.trunc_normal_(drawn, std=_SPREAD, a=-2 * _SPREAD, b=2 * _SPREAD, generator=generator)
            self.down.weight.data.copy_(drawn)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, h: Tensor) -> Tensor:
        """What takes the place of h, of its shape (..., d) and dtype."""
        x = h.to(self.down.weight.dtype) if not torch.is_autocast_enabled(h.device.type) else h
        if self.norm is not None:
            x = self.norm(x)
        return h + self.up(self.activation(self.down(x))).to(h.dtype)


def apply_bottleneck(model: nn.Module, bottleneck: int, placement: str, *, seed: int) -> None:
    """Put adapters into every block, in place.

    Parameters
    ----------
    model : PreTrainedModel
        With all but the head frozen.
    bottleneck : int
    placement : str
        ``houlsby``: after the output projections of attention and MLP, before the residual; the blocks' own norms are
        trained too. ``lin``: on every block's output, with a norm of its own.
    seed : int
        Of the adapters' initial values.

    Raises
    ------
    UsageError
        If the bottleneck is below 1 or far above the width, or a block lacks one of the two projections.

    Notes
    -----
    The parameters are L (2 d b + b + d) + 2 L_LN d with b the bottleneck, and L = L_LN twice the number of blocks
    (houlsby) or the number of blocks (lin); a norm without a bias (Llama) has d instead of 2 d. All norms inside a
    block count: Gemma 2 has four, Qwen 3 has two of a head's width besides.

    Houlsby et al. draw both layers from a normal distribution of standard deviation 1e-2; the second is zero here, so
    that training starts at the base model exactly. Their adapter comes after the projection's dropout, here it comes
    before it; the same where that dropout is zero. Their code trains the norm of the embeddings too; here it is those
    of the blocks, which the count above has.

    References
    ----------
    Houlsby et al. (2019), arXiv:1902.00751, section 2.1 (Adapter-H). Lin, Madotto & Fung (2020), arXiv:2004.03829,
    section 3 (Adapter-L). Hu et al. (2021), arXiv:2106.09685, section 5.1, for the counts.
    """
    if placement not in PLACEMENTS:
        raise UsageError(must("placement", f"be {' or '.join(PLACEMENTS)}", placement, "Pass one of the two"))
    if bottleneck < 1:
        raise UsageError(must("bottleneck", "be at least 1", bottleneck, "Pass 16, say"))
    generator, blocks = torch.Generator().manual_seed(seed), transformer_blocks(model)
    if placement == "lin":
        places = [(path, block, model.config.hidden_size) for path, block in blocks]
    else:
        places = _projections(model, [path for path, _ in blocks])
    # Wider than its block an adapter is no bottleneck any more; far wider it is a typing error.
    widest = 100 * min(d for _, _, d in places)
    if bottleneck > widest:
        rule = f"be at most {widest}, a hundred times the width"
        raise UsageError(must("bottleneck", rule, bottleneck, "Pass 16, say"))
    for _, block in blocks if placement == "houlsby" else ():
        for norm in _norms(block):
            norm.requires_grad_(True)
    for path, module, d in places:
        if hasattr(module, "adapter"):
            raise UsageError(must(path, "have no adapter yet", "a second one", "Apply one method at a time"))
        _attach(module, d, bottleneck, placement == "lin", generator)


def _attach(module: nn.Module, d: int, bottleneck: int, own_norm: bool, generator: torch.Generator) -> None:
    """Give a module an adapter that its output goes through.

    A hook, not a module around it: names of the base's parameters stay, and so do attributes that other code asks a
    block for. The hook finds the adapter in the module that it is called for, so that a deep copy has its own.
    """
    device = next(module.parameters()).device
    module.adapter = Bottleneck(d, bottleneck, own_norm, generator, device)
    module.register_forward_hook(_through_adapter)


def _through_adapter(module: nn.Module, args: tuple, output):
    if isinstance(output, tuple | list):  # OpenAI GPT's blocks give a list
        return type(output)([module.adapter(output[0]), *output[1:]])
    return module.adapter(output)


def _projections(model: nn.Module, blocks: list[str]) -> list[tuple[str, nn.Module, int]]:
    """The output projections of attention and MLP of every block: path, module and width of the output."""
    sites = weight_sites(model_shapes(model), config=model_config(model))
    sites = [site for site in sites if site.kind in ("o", "down")]
    found = [s for s in sites if any(s.module.startswith(f"{path}.") for path in blocks)]
    for path in blocks:
        kinds = sorted(site.kind for site in found if site.module.startswith(f"{path}."))
        if kinds != ["down", "o"]:
            rule = "have one output projection of attention and one of the MLP"
            raise UsageError(must(f"Block {path}", rule, ", ".join(kinds) or "none", "Choose adapter_l"))
    return [(site.module, model.get_submodule(site.module), site.shape[0]) for site in found]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: called so (``RMSNorm``, ``NemotronLayerNorm1P``), and holding vectors alone."""
    own = list(module.parameters(recurse=False))
    return "Norm" in type(module).__name__ and bool(own) and all(p.ndim == 1 for p in own)


def _norms(block: nn.Module) -> list[nn.Module]:
    return [module for module in block.modules() if is_norm(module)]

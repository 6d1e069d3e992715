"""Fastfood: a random projection P from R^d to R^D that is never built, applied in O(D log d) time and O(D) memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rankprobe.errors import UsageError, must

# Largest factor of the transform. Larger ones cost more multiplications than they save passes over memory.
_RADIX = 32
# Numbers worked on at once. On a CPU a quarter of that is as fast on one thread, and larger pieces leave its caches.
# But threads wait for each other after every operation on a piece, and long where others want the cores: the fewer
# the better. A GPU wants large pieces.
_CHUNK = {"cpu": 1 << 19, "other": 1 << 24}


class Fastfood(nn.Module):
    """The projection P, a stack of ⌈D/L⌉ blocks ``H G Π H B`` of size L = 2^⌈log2 d⌉, cut to D rows.

    Called on a (d,) tensor it gives the (D,) tensor P θ; autograd goes through it with the exact transpose.

    Parameters
    ----------
    d : int
        Dimension that is projected from, 1 to D.
    D : int
        Dimension that is projected to.
    seed : int
        The same seed gives the same P whatever the device and the number of threads: all is drawn on the CPU.
    dtype : torch.dtype
        float32 or float64: of G and of the arithmetic.
    device : torch.device or str

    Attributes
    ----------
    d, D, L, blocks : int
    signs : Tensor, shape (blocks, L), int8
        The diagonals of B, ±1 with equal probability.
    permutation : Tensor, shape (blocks, L), int16 (int32 from L = 2^16 on)
        Π x = x[permutation], each a uniform permutation of its own.
    gaussian : Tensor, shape (blocks, L)
        The diagonals of G, standard normal.

    Raises
    ------
    UsageError
        If d is below 1 or above D.

    Notes
    -----
    With θ padded by zeros to L numbers, block k gives ``H G_k Π_k H B_k θ / sqrt(D L)``, H the Walsh-Hadamard matrix in
    Sylvester's order with entries ±1, so that ``H / sqrt(L)``, B and Π are orthogonal. Then E[PᵀP] = I, also where the
    last block is cut: with R the first k rows of H, E[G RᵀR G] = k I, so each block adds k L / (D L) I, and the k of
    all blocks add up to D. Where D is a multiple of L the squared length of a column is χ² with D degrees of freedom,
    by D.

    Departures: Le et al. also scale the rows (their S) to the lengths of a Gaussian matrix's, for a kernel; the two
    papers on intrinsic dimension do without. The code that goes round with those divides by the length of the G that
    was drawn, so that the mean of all columns' squared lengths is 1, not their expectation: with D in the thousands
    there is no telling them apart. It also makes a block of each tensor, of 2^⌈log2 D⌉, and Compacter's copy has a
    factor of 1 / sqrt(L) in its backward pass that its forward pass lacks.

    Time: the transform is a few products with Hadamard matrices of at most 32 rows, as H_1024 = H_32 ⊗ H_32. Memory: 7
    bytes for each of D numbers in float32, and a few pieces of the size of a cache.

    References
    ----------
    Le, Sarlós & Smola (2013), "Fastfood", ICML (arXiv:1408.3060).
    Li, Farkhoor, Liu & Yosinski (2018), arXiv:1804.08838, section 2.
    Aghajanyan, Zettlemoyer & Gupta (2020), arXiv:2012.13255, equation 2.

    Examples
    --------
    >>> P = Fastfood(3, 10_000, seed=0)
    >>> P.L, P.blocks
    (4, 2500)
    >>> theta = torch.tensor([3.0, 0.0, 4.0])
    >>> abs(float(P(theta).norm()) - 5) < 0.2
    True
    """

    def __init__(
        self, d: int, D: int, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        check_dimensions(d, D)
        self.d, self.D, self.L = d, D, 1 << (d - 1).bit_length()
        self.blocks = -(-D // self.L)
        self.scale = 1 / math.sqrt(D * self.L)
        generator = torch.Generator().manual_seed(seed)
        shape = (self.blocks, self.L)
        signs = torch.empty(shape, dtype=torch.int8).random_(0, 2, generator=generator).mul_(2).sub_(1)
        # Drawn in float32 whatever the dtype, so that P is the same one.
        gaussian = torch.randn(shape, generator=generator).to(dtype)
        # Not in the state that is saved: the seed is enough.
        self.register_buffer("signs", signs.to(device), persistent=False)
        self.register_buffer("gaussian", gaussian.to(device), persistent=False)
        self.register_buffer("permutation", self._permutations(generator).to(device), persistent=False)
        factors = {a: _hadamard(a).to(device, dtype) for a, _ in self._stages()}
        for a, H in factors.items():
            self.register_buffer(f"H_{a}", H, persistent=False)

    def forward(self, theta: Tensor) -> Tensor:
        """P θ, shape (D,), for θ of shape (d,); differentiable in θ."""
        return _Projection.apply(theta, self)

    @torch.no_grad()
    def project(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """P θ without autograd.

        Parameters
        ----------
        theta : Tensor, shape (d,)
        out : Tensor, shape (D,), contiguous, optional
            Written to, and returned.

        Returns
        -------
        Tensor, shape (D,)
        """
        G = self.gaussian
        out = torch.empty(self.D, dtype=G.dtype, device=G.device) if out is None else out
        v = torch.zeros(self.L, dtype=G.dtype, device=G.device)
        v[: self.d] = theta
        v *= self.scale
        x, y = self._scratch(), self._scratch()
        with torch.autocast(G.device.type, enabled=False):
            for rows in self._chunks():
                n = rows.stop - rows.start
                # Copied first: a product of int8 and float converts number by number.
                x[:n].copy_(self.signs[rows]).mul_(v)
                hx, other = self._transform(x[:n], y[:n])
                torch.gather(hx, 1, self.permutation[rows].long(), out=other)
                hx, _ = self._transform(other.mul_(G[rows]), hx)
                part = out[rows.start * self.L : rows.stop * self.L]
                part.copy_(hx.reshape(-1)[: len(part)])
        return out

    @torch.no_grad()
    def adjoint(self, y: Tensor) -> Tensor:
        """Pᵀ y.

        Parameters
        ----------
        y : Tensor, shape (D,)

        Returns
        -------
        Tensor, shape (d,)
        """
        G = self.gaussian
        x, z, total = self._scratch(), self._scratch(), self._scratch().zero_()
        with torch.autocast(G.device.type, enabled=False):
            for rows in self._chunks():
                n = rows.stop - rows.start
                part = y[rows.start * self.L : rows.stop * self.L]
                flat = x[:n].view(-1)
                flat[: len(part)] = part
                flat[len(part) :] = 0
                hx, other = self._transform(x[:n], z[:n])
                other.scatter_(1, self.permutation[rows].long(), hx.mul_(G[rows]))
                hx, other = self._transform(other, hx)
                total[:n].addcmul_(hx, other.copy_(self.signs[rows]))
        return total.sum(0)[: self.d] * self.scale

    def _transform(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """H times each row of x; y is room of the same shape. The result and what is room now: one is x, one is y."""
        for a, inner in self._stages():
            H = getattr(self, f"H_{a}")
            if inner == 1:
                torch.mm(x.view(-1, a), H, out=y.view(-1, a))
            else:
                shape = (x.numel() // (a * inner), a, inner)
                torch.bmm(H.expand(shape[0], a, a), x.view(shape), out=y.view(shape))
            x, y = y, x
        return x, y

    def _stages(self) -> list[tuple[int, int]]:
        """Factors of H as (size, size of all inside it), the innermost first."""
        stages, inner = [], 1
        while inner < self.L:
            a = min(_RADIX, self.L // inner)
            stages.append((a, inner))
            inner *= a
        return stages

    def _chunks(self) -> list[slice]:
        step = self._chunk_rows()
        return [slice(i, min(i + step, self.blocks)) for i in range(0, self.blocks, step)]

    def _chunk_rows(self) -> int:
        numbers = _CHUNK.get(self.gaussian.device.type, _CHUNK["other"])
        return min(self.blocks, max(1, numbers // self.L))

    def _scratch(self) -> Tensor:
        return torch.empty(self._chunk_rows(), self.L, dtype=self.gaussian.dtype, device=self.gaussian.device)

    def _permutations(self, generator: torch.Generator) -> Tensor:
        out = torch.empty(self.blocks, self.L, dtype=torch.int16 if self.L <= 1 << 15 else torch.int32)
        # A piece at a time: keys and their order are eight bytes each. What a number's key is does not depend on it.
        step = max(1, (1 << 20) // self.L)
        for i in range(0, self.blocks, step):
            keys = torch.empty(out[i : i + step].shape, dtype=torch.int64).random_(generator=generator)
            out[i : i + step] = keys.argsort(dim=1, stable=True)
        return out


def check_dimensions(d: int, D: int) -> None:
    """Refuse a d that no projection to R^D has.

    Raises
    ------
    UsageError
        If d is below 1 or above D.
    """
    if not 1 <= d <= D:
        raise UsageError(must("d", f"be from 1 to D = {D}, the number of weights", d, "Pass another d"))


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx, theta: Tensor, P: Fastfood) -> Tensor:
        ctx.P = P
        return P.project(theta)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.P.adjoint(gradient), None


def _hadamard(n: int) -> Tensor:
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H

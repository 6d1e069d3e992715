"""Names of the columns of ranks.csv, which readers of finished files need without what measures them (torch)."""

from __future__ import annotations

from collections.abc import Sequence

ENERGY_SHARES = (0.50, 0.90, 0.95, 0.99)


def energy_column(q: float) -> str:
    """Name of the column of a share of the energy.

    >>> energy_column(0.9), energy_column(0.975)
    ('energy_rank_90', 'energy_rank_97.5')
    """
    return f"energy_rank_{100 * q:g}"


def rank_columns(energies: Sequence[float] = ENERGY_SHARES) -> tuple[str, ...]:
    """The columns that are ranks by a definition without noise."""
    shares = (energy_column(q) for q in sorted(energies))
    return ("stable_rank", "effective_rank", "participation_ratio", *shares, "numerical_rank")


def columns(energies: Sequence[float] = ENERGY_SHARES) -> tuple[str, ...]:
    """The columns of ranks.csv, in order."""
    return (
        "name", "layer", "kind", "m", "n", "dtype_base", "dtype_tuned", "source", "fro_norm", "relative_change",
        "sigma_max", *rank_columns(energies), "unchanged_fraction", *NOISE_RANKS, "storage_floor", "bulk_to_floor",
        "mp_edge", "gd_threshold", "decomposition", "residual",
    )  # fmt: skip


NOISE_RANKS = ("storage_rank", "mp_rank", "gd_rank")
RANK_COLUMNS = rank_columns()
COLUMNS = columns()
# Whole numbers, or nothing where there is no such thing: no layer, factors, an update that rounding swallowed.
INTEGERS = ("layer", *NOISE_RANKS)

"""What X and Y are, which base each was tuned from, and which of their matrices are to be compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.weights.adapter import AdapterSource
from rankprobe.weights.inputs import base_of, open_input
from rankprobe.weights.pair import Matrix, Pairing, pair

ALL_OF = ("right", "left", "A")
_ONE = "Pass two tunings of one architecture"


@dataclass(frozen=True)
class Sides:
    """Two tunings, opened and matched; nothing large is in memory.

    Attributes
    ----------
    x, y : Pairing
        Each with its base, where that is at hand.
    pairs : list of (Matrix, Matrix)
        The matrices to compare, in X's order.
    skipped : dict of str to str
        Matrices that are not compared, with the reason.
    notes : list of str
        One line each, for people.
    same : bool
        X and Y are one input.
    fingerprint : str
        Of both inputs and both bases: recognises the same comparison when work is resumed.
    """

    x: Pairing
    y: Pairing
    pairs: list[tuple[Matrix, Matrix]]
    skipped: dict[str, str]
    notes: list[str]
    same: bool
    fingerprint: str

    @property
    def labels(self) -> tuple[str, str]:
        """Names of X and Y for tables."""
        return self.x.tuned.label, self.y.tuned.label

    @property
    def one_base(self) -> bool:
        """Both have a base at hand, and it is the same one."""
        return None not in (self.x.base, self.y.base) and _same(self.x.base, self.y.base)


def open_sides(
    x,
    y,
    base=None,
    *,
    of: str = "right",
    include: str | None = None,
    exclude: str | None = None,
    alpha_x: float | None = None,
    alpha_y: float | None = None,
    runs: str | Path = "runs",
) -> Sides:
    """Open X, Y and their bases and match their matrices.

    Parameters
    ----------
    x, y, base
        What :func:`rankprobe.weights.inputs.open_input` takes. Without ``base``, a rankprobe run's own is looked for;
        an adapter needs none.
    of : str
        ``right``, ``left`` or ``A``, which only adapters have.
    include, exclude : str, optional
        Regular expressions on names.
    alpha_x, alpha_y : float, optional
        LoRA's alpha, for files that do not hold it.
    runs : Path
        Where runs are looked for by name.

    Returns
    -------
    Sides

    Raises
    ------
    UsageError
        If an input cannot be read, a full model comes without a base, ``A`` is asked of one, or nothing is shared.
    """
    if of not in ALL_OF:
        raise UsageError(must("of", f"be one of {', '.join(ALL_OF)}", repr(of), "Pass right, the default"))
    runs = Path(runs)
    opened_bases: dict = {}
    sides, notes = [], []
    for role, where, alpha in (("X", x, alpha_x), ("Y", y, alpha_y)):
        if sides and alpha == alpha_x and (where is x or (_named(where) and _named(x) and str(where) == str(x))):
            sides.append(sides[0])
            continue
        tuned = open_input(where, alpha=alpha, role=role, runs=runs)
        adapter = isinstance(tuned, AdapterSource)
        if of == "A" and not adapter:
            got = f"{role} = {tuned.label}, a full model"
            raise UsageError(must("of A", "be of two adapters", got, "Pass --of right"))
        origin = base if base is not None else _base_of(where, runs)
        if origin is None and not adapter:
            got = f"{role} = {tuned.label}, a full model, alone"
            raise UsageError(must(role, "come with the base it was tuned from", got, "Pass --base W0"))
        key = str(origin) if _named(origin) else id(origin)
        if key not in opened_bases:
            opened_bases[key] = None if origin is None else open_input(origin, role="base", runs=runs)
        if isinstance(opened_bases[key], AdapterSource):
            got = f"the adapter {opened_bases[key].label}"
            raise UsageError(must("base", "be a full model", got, "Pass the model that X and Y were tuned from"))
        sides.append(pair(opened_bases[key], tuned, include=include, exclude=exclude))
    one, two = sides
    same = one is two or (_same(one.tuned, two.tuned) and alpha_x == alpha_y)
    pairs, skipped = _matched(one, two, factors=of == "A")
    for role, side in (("X", one), ("Y", two)):
        notes += [f"{role}: {note}" for note in side.notes]
        notes += [f"{role}: {name} has {abs(rows)} rows {'more' if rows > 0 else 'fewer'} than the base's; those that "
                  "both have are compared" for name, rows in side.added_rows.items()]
    notes += _notes(one, two, same, skipped)
    parts = [getattr(opened, "fingerprint", "") for side in sides for opened in (side.tuned, side.base)]
    fingerprint = " ".join(map(str, (*parts, alpha_x, alpha_y)))
    return Sides(one, two, pairs, skipped, list(dict.fromkeys(notes)), same, fingerprint)


def _base_of(where, runs: Path):
    """The base of a rankprobe run; None for anything else, weights in memory among them."""
    return base_of(where, runs) if _named(where) else None


def _named(where) -> bool:
    """Whether an input is on disk or on the hub, not in memory."""
    return isinstance(where, (str, os.PathLike))


def _same(one, two) -> bool:
    """Whether two inputs are one: the same object, or the same files."""
    on_disk = one.path is not None and two.path is not None
    return one is two or (on_disk and bool(one.fingerprint) and one.fingerprint == two.fingerprint)


def _matched(x: Pairing, y: Pairing, *, factors: bool) -> tuple[list[tuple[Matrix, Matrix]], dict[str, str]]:
    """Pairs of matrices of one name (a model's prefix may be there on one side only), and what has none or differs.

    With ``factors`` both have to be factors: an adapter may hold some matrices whole (PEFT's modules_to_save).
    """
    skipped = {}
    for role, side in (("X", x), ("Y", y)):
        skipped |= {name: f"{role}: {reason}" for name, reason in side.skipped.items()}
    by_name = {m.name: m for m in y.matrices}
    # A name's ends, for `bert.encoder...` against `encoder...`; None where two matrices end alike.
    ends: dict[str, Matrix | None] = {}
    for m in y.matrices:
        for end in _ends(m.name):
            ends[end] = None if end in ends else m
    pairs, used = [], set()
    for m in x.matrices:
        partner = by_name.get(m.name) or ends.get(m.name)
        if partner is None:
            partner = next((by_name[end] for end in _ends(m.name) if end in by_name), None)
        if partner is None or partner.name in used:
            skipped[m.name] = "only in X"
            continue
        used.add(partner.name)
        if tuple(m.shape) != tuple(partner.shape):
            skipped[m.name] = f"shapes differ: {tuple(m.shape)} in X, {tuple(partner.shape)} in Y"
        elif factors and not m.source == partner.source == "factored":
            skipped[m.name] = "saved whole: there is no factor A"
        else:
            pairs.append((m, partner))
    skipped |= {m.name: "only in Y" for m in y.matrices if m.name not in used}
    if not pairs:
        raise _nothing_shared(x, y, skipped)
    return pairs, skipped


def _ends(name: str) -> list[str]:
    """The name without its first one, two, ... parts, as far as a block's index.

    >>> _ends("bert.encoder.layer.0.query.weight")
    ['encoder.layer.0.query.weight', 'layer.0.query.weight']
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), 1)
    return [".".join(parts[i:]) for i in range(1, first)]


def _nothing_shared(x: Pairing, y: Pairing, skipped: dict[str, str]) -> UsageError:
    different = [f"{name}: {reason}" for name, reason in skipped.items() if reason.startswith("shapes differ")]
    if different:
        got = f"{different[0]}{f' and {len(different) - 1} more' if len(different) > 1 else ''}"
        return UsageError(must("X and Y", "share a weight matrix of one shape", got, _ONE))
    named = [f"{len(s.matrices)} in {role}{f' ({s.matrices[0].name}, ...)' if s.matrices else ''}" for role, s in
             (("X", x), ("Y", y))]
    return UsageError(must("X and Y", "share a weight matrix", " and ".join(named), _ONE))


def _notes(x: Pairing, y: Pairing, same: bool, skipped: dict[str, str]) -> list[str]:
    notes = []
    if same:
        notes.append("X and Y are the same input: every matrix agrees with itself, whatever it holds")
    if x.base is not None and y.base is not None:
        if not _same(x.base, y.base):
            notes.append(f"X and Y were tuned from different bases: {x.base.label} and {y.base.label}")
    else:
        names = [getattr(side.tuned, "base_name", None) for side in (x, y)]
        if all(names) and names[0] != names[1]:
            notes.append(f"X and Y name different bases: {names[0]} and {names[1]}")
        missing = [role for role, side in (("X", x), ("Y", y)) if side.base is None]
        notes.append(f"No base is at hand for {' and '.join(missing)}: no amplification and no intruder dimensions "
                     f"{'there' if len(missing) == 1 else ''}".rstrip())
    for role in ("X", "Y"):
        if count := sum(reason == f"only in {role}" for reason in skipped.values()):
            notes.append(f"{count} {'matrix is' if count == 1 else 'matrices are'} only in {role}")
    if count := sum(reason.startswith("shapes differ") for reason in skipped.values()):
        notes.append(f"{count} {'matrix has' if count == 1 else 'matrices have'} another shape in Y")
    return notes

"""BBBP.csv → train.csv and eval.csv: a molecule goes where the sha256 of its SMILES says, 80 % to training.

python studies/decoders/split_bbbp.py BBBP.csv FOLDER
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pandas as pd


def share(text: str) -> float:
    """A text's place in [0, 1), by its sha256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def main(table: str, folder: str) -> None:
    rows = pd.read_csv(table).drop_duplicates("smiles")
    # In its order too: the file is sorted by label, and the last tenth of the training rows is for tuning.
    rows = rows.sort_values("smiles", key=lambda column: column.map(share))
    trained = rows["smiles"].map(share) < 0.8
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[trained]), ("eval", rows[~trained])):
        part.to_csv(Path(folder) / f"{name}.csv", index=False)
        print(f"{name}: {len(part):,} molecules, {part['BBBP'].mean():.1%} pass the barrier")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: split_bbbp.py BBBP.csv FOLDER")
    main(*sys.argv[1:])

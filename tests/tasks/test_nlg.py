"""E2E and SMILES: rows, splits, the paper's own prompts, and what is wrong with files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks.docstrings import split_of
from rankprobe.tasks.load import load_splits, load_task
from rankprobe.tasks.nlg import e2e_prompt, load_texts
from rankprobe.tasks.task import Example

FILES = ("trainset.csv", "devset.csv", "testset_w_refs.csv")
MR = '"name[Blue Spice], eatType[coffee shop], area[city centre]"'


@pytest.fixture
def e2e(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text(f'mr,ref\n{MR},"A {name},\r\n  in two  lines."\nname[Cocum],Short.\n')
    return tmp_path


@pytest.fixture
def smiles(tmp_path: Path) -> Path:
    """Chains of 1 to 60 carbons."""
    file = tmp_path / "chains.smi"
    file.write_text("".join("C" * n + "\n" for n in range(1, 61)))
    return file


def test_prompts_say_the_slots_in_words():
    meaning = "name[Cotto], eatType[pub], food[Fast food], priceRange[£20-25], customer rating[5 out of 5], "
    meaning += "area[riverside], familyFriendly[no], near[All Bar One, or so]"
    assert e2e_prompt(meaning) == (
        "name : Cotto | Type : pub | food : Fast food | price : £20-25 | customer rating : 5 out of 5 | "
        "area : riverside | family friendly : no | near : All Bar One, or so ||"
    )


@pytest.mark.parametrize("meaning", ["", "name", "name[Cotto", "name[Cotto] area[riverside]", "name[a[b]]"])
def test_what_is_no_meaning_representation(meaning):
    with pytest.raises(ValueError):
        e2e_prompt(meaning)


def test_e2e_rows_are_references_with_white_space_folded(e2e):
    rows = load_texts("e2e", e2e)
    assert list(rows) == ["train", "tuning", "eval"]
    prompt = "name : Blue Spice | Type : coffee shop | area : city centre ||"
    for split, name in zip(rows, FILES, strict=True):
        assert rows[split] == (
            Example("0", prompt, f" A {name}, in two lines.", 0),
            Example("1", "name : Cocum ||", " Short.", 0),
        )


def test_the_test_set_is_evaluated_on_and_the_development_set_tuned_on(e2e):
    task, tuning = load_task("e2e", data_dir=e2e), load_task("e2e", data_dir=e2e, split="tuning")
    assert task.eval[0].text_b == " A testset_w_refs.csv, in two lines." and task.is_language_modelling
    assert tuning.eval[0].text_b == " A devset.csv, in two lines." and tuning.train == task.train


def test_a_molecule_is_a_completion_without_a_prompt(smiles):
    rows = load_texts("smiles", smiles)
    assert all(row.text == "" and row.label == 0 for examples in rows.values() for row in examples)
    for split, examples in rows.items():
        assert {split_of(row.text_b) for row in examples} == {split}
        assert all(row.text_b == "C" * (int(row.row) + 1) for row in examples)
    assert sum(map(len, rows.values())) == 60
    assert load_texts("smiles", smiles.parent) == rows  # the only .smi file of its folder


def test_the_order_of_a_file_is_that_of_its_rows_ids_alone(smiles):
    before = {row.text_b for row in load_texts("smiles", smiles)["eval"]}
    order = [row.text_b for row in load_texts("smiles", smiles)["train"]]
    smiles.write_text("\n".join(reversed(smiles.read_text().split())))
    after = load_texts("smiles", smiles)
    assert {row.text_b for row in after["eval"]} == before and [row.text_b for row in after["train"]] == order


def test_names_behind_molecules_empty_lines_and_repeats(smiles):
    lines = smiles.read_text().split("\n")
    smiles.write_text("\n".join(["CCO ethanol", "", "CCO\tethyl alcohol", "  ", *lines]))
    rows = load_texts("smiles", smiles)
    found = [(split, row.row) for split, examples in rows.items() for row in examples if row.text_b == "CCO"]
    assert [row for _, row in found] == ["0", "1"] and len({split for split, _ in found}) == 1
    assert sum(map(len, rows.values())) == 62


def test_folders_called_after_the_task(e2e, smiles, tmp_path):
    above = tmp_path / "above"
    for name, files in (("e2e", FILES), ("smiles", ("chains.smi",))):
        (above / name).mkdir(parents=True)
        for file in files:
            (above / name / file).write_bytes((tmp_path / file).read_bytes())
        assert load_texts(name, above) == load_texts(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("e2e", lambda d: (d / "devset.csv").unlink(), r"must hold e2e's devset\.csv, in it or in a folder called e2e"),
        ("e2e", lambda d: (d / "trainset.csv").write_text("mr,text\nname[A],b\n"), "must have a column 'ref'"),
        ("e2e", lambda d: (d / "trainset.csv").write_text("mr,ref\nA,b\n"), "The mr on line 2 of .* must be slots"),
        ("e2e", lambda d: (d / "devset.csv").write_text("mr,ref\nname[A], \n"), "The ref on line 2 of .* not be empty"),
        ("smiles", lambda d: (d / "chains.smi").rename(d / "chains.txt"), r"must hold one file ending in \.smi"),
        ("smiles", lambda d: (d / "more.smi").write_text("C\n"), r"one file ending in \.smi. Got chains\.smi, more"),
        ("smiles", lambda d: (d / "chains.smi").write_text("CC\n"), "must hold enough molecules for three splits"),
        ("smiles", lambda d: (d / "chains.smi").write_text("CC\nCCO,train\n"), r"Line 2 of .* SMILES. Got 'CCO,train'"),
        ("smiles", lambda d: (d / "chains.smi").write_text("178\tCC(=O)N\n"), r"Line 1 of .* SMILES. Got '178'"),
        ("smiles", lambda d: (d / "chains.smi").write_text("SMILES\nCC\n"), r"Line 1 of .* SMILES. Got 'SMILES'"),
        ("smiles", lambda d: (d / "chains.smi").write_text(""), "must have rows. Got an empty file"),
        ("smiles", lambda d: (d / "chains.smi").write_bytes(b"C\xff\n"), "must be text in utf-8"),
    ],
)
def test_bad_files_are_one_line(e2e, smiles, tmp_path, name, damage, message):
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        load_task(name, data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "hint"), [("e2e", "folder of trainset.csv"), ("smiles", "a file of a molecule")])
def test_without_a_folder_or_with_none_that_is_there(name, hint, tmp_path):
    with pytest.raises(UsageError, match=f"The task {name} must have a source. Got no --data-dir.*{hint}"):
        load_task(name)
    with pytest.raises(UsageError, match=f"--data-dir must be a .*folder. Got .*nowhere.*{hint}"):
        load_task(name, data_dir=tmp_path / "nowhere")


def test_the_real_e2e_has_the_official_counts_and_the_papers_own_prompts(shared):
    splits = load_splits("e2e", data_dir=shared / "data")
    assert {split: len(rows) for split, rows in splits.rows.items()} == {"train": 42061, "tuning": 4672, "eval": 4693}
    # microsoft/LoRA's own files: the same rows; it writes "£ 20 - 25" for "£20-25".
    for split, file in (("tuning", "valid.txt"), ("eval", "test.txt")):
        theirs = (shared / "data" / "e2e" / file).read_text(encoding="utf-8").splitlines()
        assert len(theirs) == len(splits.rows[split])
        ours = [row.text.removesuffix(" ||").replace("£20-25", "£ 20 - 25").replace("than £", "than £ ")
                for row in splits.rows[split]]  # fmt: skip
        assert ours == [line.partition("||")[0] for line in theirs]


def test_the_real_molecules(shared):
    splits = load_splits("smiles", data_dir=shared / "data")
    assert {split: len(rows) for split, rows in splits.rows.items()} == {"train": 6920, "tuning": 951, "eval": 2009}
    assert sum(map(len, splits.rows.values())) == 9880 and splits.problem == "language_modelling"

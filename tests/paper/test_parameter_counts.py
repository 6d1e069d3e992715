"""Ours beside every printed count: closed forms written again here, and what is expected of each row by hand."""

from __future__ import annotations

import re

import pytest

from rankprobe.paper.architectures import paper_config
from rankprobe.paper.parameter_counts import COLUMNS, paper_parameter_counts, printed_number, verdict
from rankprobe.paper.published import published

# Section, row, setting, print, ours and verdict, a row a line; M is GPT-2 medium and L large, X GPT-3.
ROWS = """
Table 2          | roberta-base       | FT       | -              | 125.0M     | 124055040    | differs
Table 2          | roberta-base       | BitFit   | -              | 0.1M       | 102144       | equal
Table 2          | roberta-base       | LoRA     | q,v r=8        | 0.3M       | 294912       | equal
Table 2          | roberta-large      | FT       | -              | 355.0M     | 354310144    | differs
Table 2          | roberta-large      | LoRA     | q,v r=8        | 0.8M       | 786432       | equal
Table 2          | roberta-large      | AdapterP | 64             | 3.0M       | 3171840      | equal in 2^20
Table 2          | roberta-large      | AdapterP | 16             | 0.8M       | 811392       | equal
Table 2          | roberta-large      | AdapterH | 64             | 6.0M       | 6343680      | equal in 2^20
Table 2          | roberta-large      | AdapterH | 8              | 0.8M       | 835968       | equal
Table 2          | deberta-v2-xxlarge | FT       | -              | 1500.0M    | 1564549632   | differs
Table 2          | deberta-v2-xxlarge | LoRA     | q,v r=16       | 4.7M       | 4718592      | equal
Table 2          | deberta-v2-xxlarge | LoRA     | q,v r=8        | 4.7M       | 2359296      | differs
Table 3          | gpt2-medium        | FT       | -              | 354.92M    | 354823168    | differs
Table 3          | gpt2-medium        | FT-Top2  | 2              | 25.19M     | 25192448     | equal
Table 3          | gpt2-medium        | LoRA     | q,v r=4        | 0.35M      | 393216       | differs
Table 3          | gpt2-large         | FT       | -              | 774.03M    | 774030080    | equal
Table 3          | gpt2-large         | LoRA     | q,v r=4        | 0.77M      | 737280       | differs
Table 4          | gpt3-175b          | FT       | -              | 175,255.8M | 174604259328 | differs
Table 4          | gpt3-175b          | BitFit   | -              | 14.2M      | 12988416     | differs
Table 4          | gpt3-175b          | PreEmbed | 264            | 3.2M       | 3244032      | equal
Table 4          | gpt3-175b          | PreLayer | 16             | 20.2M      | 18874368     | differs
Table 4          | gpt3-175b          | AdapterH | 1              | 7.1M       | 7078080      | equal
Table 4          | gpt3-175b          | AdapterH | 8              | 40.1M      | 40109568     | equal
Table 4          | gpt3-175b          | LoRA     | q,v r=1        | 4.7M       | 4718592      | equal
Table 4          | gpt3-175b          | LoRA     | q,v r=8        | 37.7M      | 37748736     | equal
section D.4      | gpt3-175b          | LoRA     | v r=2          | 4.7M       | 4718592      | equal
section D.4      | gpt3-175b          | LoRA     | q,k,v,o r=2    | 37.7M      | 18874368     | differs
Table 5          | gpt3-175b          | LoRA     | q r=8          | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | k r=8          | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | v r=8          | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | o r=8          | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | q,k r=4        | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | q,v r=4        | 18M        | 18874368     | equal in 2^20
Table 5          | gpt3-175b          | LoRA     | q,k,v,o r=2    | 18M        | 18874368     | equal in 2^20
Tables 13 and 14 | gpt2-medium        | FT       | -              | 354M       | 354823168    | cut
Tables 13 and 14 | gpt2-medium        | FT-Top2  | 2              | 24M        | 25192448     | equal in 2^20
Tables 13 and 14 | gpt2-medium        | LoRA     | q,v r=4        | 0.35M      | 393216       | differs
Tables 13 and 14 | gpt2-large         | FT       | -              | 774M       | 774030080    | equal
Tables 13 and 14 | gpt2-large         | LoRA     | q,v r=4        | 0.77M      | 737280       | differs
Table 15         | gpt3-175b          | FT       | -              | 175B       | 174604259328 | equal
Table 15         | gpt3-175b          | PreEmbed | 40             | 0.4M       | 491520       | cut
Table 15         | gpt3-175b          | PreEmbed | 72             | 0.9M       | 884736       | equal
Table 15         | gpt3-175b          | PreEmbed | 136            | 1.7M       | 1671168      | equal
Table 15         | gpt3-175b          | PreEmbed | 264            | 3.2M       | 3244032      | equal
Table 15         | gpt3-175b          | PreEmbed | 520            | 6.4M       | 6389760      | equal
Table 15         | gpt3-175b          | PreLayer | 4              | 5.1M       | 4718592      | differs
Table 15         | gpt3-175b          | PreLayer | 8              | 10.1M      | 9437184      | differs
Table 15         | gpt3-175b          | PreLayer | 16             | 20.2M      | 18874368     | differs
Table 15         | gpt3-175b          | PreLayer | 36             | 44.1M      | 42467328     | differs
Table 15         | gpt3-175b          | PreLayer | 64             | 76.1M      | 75497472     | differs
Table 15         | gpt3-175b          | AdapterH | 1              | 7.1M       | 7078080      | equal
Table 15         | gpt3-175b          | AdapterH | 4              | 21.2M      | 21234432     | equal
Table 15         | gpt3-175b          | AdapterH | 8              | 40.1M      | 40109568     | equal
Table 15         | gpt3-175b          | AdapterH | 16             | 77.9M      | 77859840     | equal
Table 15         | gpt3-175b          | AdapterH | 64             | 304.4M     | 304361472    | equal
Table 15         | gpt3-175b          | LoRA     | v r=2          | 4.7M       | 4718592      | equal
Table 15         | gpt3-175b          | LoRA     | q,v r=1        | 4.7M       | 4718592      | equal
Table 15         | gpt3-175b          | LoRA     | q,v r=2        | 9.4M       | 9437184      | equal
Table 15         | gpt3-175b          | LoRA     | q,k,v,o r=1    | 9.4M       | 9437184      | equal
Table 15         | gpt3-175b          | LoRA     | q,v r=4        | 18.8M      | 18874368     | cut
Table 15         | gpt3-175b          | LoRA     | q,k,v,o r=2    | 18.8M      | 18874368     | cut
Table 15         | gpt3-175b          | LoRA     | q,v r=8        | 37.7M      | 37748736     | equal
Table 15         | gpt3-175b          | LoRA     | q,k,v,o r=4    | 37.7M      | 37748736     | equal
Table 15         | gpt3-175b          | LoRA     | q,v r=64       | 301.9M     | 301989888    | cut
Table 15         | gpt3-175b          | LoRA     | q,k,v,o r=64   | 603.8M     | 603979776    | differs
Table 15         | gpt3-175b          | LoRA+PE  | q,v r=8 12     | 37.8M      | 37896192     | cut
Table 15         | gpt3-175b          | LoRA+PE  | q,v r=32 12    | 151.1M     | 151142400    | equal
Table 15         | gpt3-175b          | LoRA+PE  | q,v r=64 12    | 302.1M     | 302137344    | equal
Table 15         | gpt3-175b          | LoRA+PL  | q,v r=8 12     | 52.8M      | 51904512     | differs
"""
# Rows whose bottleneck or length the paper leaves out: (model, name, print) and how often it is printed.
LEFT_OUT = {
    ("gpt2-medium", "AdapterL", "0.5M"): 1,
    ("gpt2-medium", "AdapterL", "11M"): 2,
    ("gpt2-medium", "AdapterH", "0.5M"): 1,
    ("gpt2-medium", "AdapterH", "11M"): 1,
    ("roberta-base", "AdapterD", "0.3M"): 1,
    ("roberta-base", "AdapterD", "0.9M"): 1,
    ("gpt2-medium", "AdapterL", "0.37M"): 2,
    ("gpt2-medium", "AdapterL", "11.09M"): 1,
    ("gpt2-medium", "AdapterH", "11.09M"): 1,
    ("gpt2-medium", "PreLayer", "0.35M"): 2,
    ("gpt2-large", "AdapterL", "0.88M"): 2,
    ("gpt2-large", "AdapterL", "23.00M"): 1,
    ("gpt2-large", "AdapterL", "23M"): 1,
    ("gpt2-large", "PreLayer", "0.77M"): 2,
}
EXPECTED = [tuple(cell.strip() for cell in line.split("|")) for line in ROWS.strip().splitlines()]


@pytest.fixture(scope="module")
def table():
    return paper_parameter_counts()


def section(row):
    return row["source"].rpartition(", ")[2]


def setting(row):
    """As in ROWS: ``q,v r=8``, ``16``, ``q,v r=8 12`` or ``-``."""
    lora = f"{row['targets']} r={row['r']}" if isinstance(row["targets"], str) else ""
    size = str(row["size"]) if row["size"] == row["size"] and row["size"] is not None else ""
    return f"{lora} {size}".strip() or "-"


def plain(table):
    """Rows as dicts, with None for what is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def closed(row, size, norms_trained):
    """REFERENCE.md, section 2, from L and d alone."""
    config = paper_config(row["model"])
    L, d = config.num_hidden_layers, config.hidden_size

    def of(method):
        modules = {"adapter_h": 2 * L, "adapter_l": L}.get(method)
        if modules:
            return modules * (2 * d * size + size + d) + (2 * modules * d if norms_trained else 0)
        return {
            "lora": lambda: L * len(row["targets"].split(",")) * row["r"] * (d + d),
            "bitfit": lambda: 11 * L * d + d,
            "top_layers": lambda: size * (12 * d * d + 13 * d),
            "prompt": lambda: d * size,
            "prefix": lambda: L * d * size,
        }[method]()

    return sum(of(method) for method in row["method"].split("+"))


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda e: " ".join(e[:5]))
def test_a_row_whose_setting_the_paper_gives(table, expected):
    *_, ours, judged = expected
    rows = [r for r in plain(table) if (section(r), r["model"], r["name"], setting(r), r["printed"]) == expected[:5]]
    assert len(rows) == 1
    (row,) = rows
    assert row["ours"] == int(ours) and row["verdict"] == judged
    if row["method"] != "full":
        assert row["ours"] == closed(row, row["size"], row["layer_norms"] == "trained")
    assert row["setting_from"] and row["fits"] == ""


@pytest.mark.parametrize(("key", "times"), LEFT_OUT.items(), ids=lambda k: " ".join(k) if isinstance(k, tuple) else "")
def test_a_row_whose_size_the_paper_leaves_out_has_every_one_that_fits(table, key, times):
    rows = [r for r in plain(table) if (r["model"], r["name"], r["printed"]) == key and not r["setting_from"]]
    assert len(rows) == times
    value, precision = printed_number(key[2])
    adapter = key[1].startswith("Adapter")
    fitting = {
        (size, trained)
        for trained in ((False, True) if adapter else (False,))
        for size in range(1, 1000)
        if abs(closed(rows[0], size, trained) - value) <= precision / 2
    }
    for row in rows:
        assert row["verdict"] == ("fits" if fitting else "none")
        assert (row["fits"] == "none") == (not fitting)
        assert sizes(row["fits"]) == fitting
        assert row["ours"] is None and row["size"] is None


def sizes(text):
    """``bottleneck 9 to 10 with layer norms frozen; ...`` as {(9, False), (10, False)}."""
    found = set()
    for first, last, norms in re.findall(r"(\d+)(?: to (\d+))?(?: with layer norms (\w+))?", text):
        found |= {(size, norms == "trained") for size in range(int(first), int(last or first) + 1)}
    return found


def test_the_tests_name_every_row(table):
    assert list(table.columns) == COLUMNS
    assert len(table) == len(EXPECTED) + sum(LEFT_OUT.values()) == 88


def test_full_fine_tuning_is_the_closed_form(table):
    for row in plain(table[table["name"] == "FT"]):
        config = paper_config(row["model"])
        L, d = config.num_hidden_layers, config.hidden_size
        outside = {
            "roberta-base": (50265 + 514 + 1 + 2) * d,
            "roberta-large": (50265 + 514 + 1 + 2) * d,
            "deberta-v2-xxlarge": (128100 + 2 + 512 + 2) * d + 3 * d * d + 3 * d,
            "gpt2-medium": (50257 + 1024 + 2) * d,
            "gpt2-large": (50257 + 1024 + 2) * d,
            "gpt3-175b": (50257 + 2048 + 2) * d,
        }[row["model"]]
        assert row["ours"] == L * (12 * d * d + 13 * d) + outside


def test_all_that_the_published_tables_print_is_judged(table):
    models = {
        "RoBERTa base": "roberta-base", "RoBERTa large": "roberta-large", "DeBERTa XXL": "deberta-v2-xxlarge",
        "GPT-2 medium": "gpt2-medium", "GPT-2 large": "gpt2-large", "GPT-3 175B": "gpt3-175b",
    }  # fmt: skip
    numbers = published().dropna(subset=["trainable_params"])
    numbers = numbers[numbers["source"].str.contains("Hu et al")]
    printed = {(models[m], n) for m, n in zip(numbers["model"], numbers["trainable_params"], strict=True)}
    assert len(printed) > 25
    judged = set(zip(table["model"], table["printed_params"], strict=True))
    assert printed <= judged


def test_a_print_that_differs_is_said_so_and_why(table):
    odd = table[~table["verdict"].isin(["equal", "fits"]) & table["source"].str.contains(r"Table [1-5]$")]
    assert (odd["note"] != "").all()


def test_callers_get_a_copy():
    mine = paper_parameter_counts()
    mine.loc[0, "printed"] = "0M"
    assert paper_parameter_counts().loc[0, "printed"] == "0.5M"


@pytest.mark.parametrize(
    ("ours", "printed", "expected"),
    [
        (4_650_000, "4.7M", "equal"),
        (4_649_999, "4.7M", "differs"),
        (4_799_999, "4.7M", "cut"),
        (4_800_000, "4.7M", "differs"),
        (3 * 2**20, "3.0M", "equal in 2^20"),
        (18 * 2**20, "18M", "equal in 2^20"),
        (174_604_259_328, "175B", "equal"),
        (174_604_259_328, "174B", "cut"),
        (0, "0.1M", "differs"),
    ],
)
def test_verdicts(ours, printed, expected):
    assert verdict(ours, printed) == expected

"""Every number of the project's collection of published figures, read out of its text, is among the published rows."""

from __future__ import annotations

import re

import pytest

from rankprobe.paper.published import published

_NUMBER = r"(?:\d[\d,]*)?\.?\d+"
TARGETS = {"q": "q", "k": "k", "v": "v", "o": "o", "qk": "q,k", "qv": "q,v", "qkvo": "q,k,v,o"}


@pytest.fixture(scope="module")
def text(shared):
    """Section 3 of REFERENCE.md."""
    whole = (shared / "REFERENCE.md").read_text(encoding="utf-8")
    return whole.split("## 3. Published numbers")[1].split("\n## ")[0]


def paragraph(text, start):
    """The paragraph that begins so, on one line."""
    (found,) = [p for p in text.split("\n\n") if p.lstrip("\n").startswith(start)]
    return " ".join(found.split())


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(_NUMBER, text)]


def table(source):
    rows = published()
    return rows[rows["source"].str.contains(source, regex=False) & ~rows["metric"].str.startswith("trainable")]


def of_table(number):
    rows = published()
    return rows[rows["source"].str.endswith(f"Table {number}") & ~rows["metric"].str.startswith("trainable")]


def values(rows, **wanted):
    for name, value in wanted.items():
        rows = rows[rows[name].isna()] if value is None else rows[rows[name] == value]
    return rows["value"].tolist()


def test_table_1(text):
    words = paragraph(text, "Table 1,")
    rows = of_table(1)
    full, low, high, sizes = words.split(";")
    assert numbers(full)[-6:] == [n for v, s in zip(
        values(rows, method="full"), rows.loc[rows["method"] == "full", "spread"], strict=True) for n in (v, s)]
    assert values(rows, method="lora merged") == values(rows, method="full")
    for part, method in ((low, "adapter_l"), (high, "adapter_h")):
        mine = [values(rows, method=method, metric=metric) for metric in ("latency", "slowdown")]
        assert numbers(part) == [n for pair in zip(*mine, strict=True) for n in pair]
        printed = rows.loc[(rows["method"] == method) & (rows["metric"] == "latency"), "trainable_params"]
        assert [n * 1e6 for n in numbers(sizes)] == printed.tolist()


METHODS_2 = {
    "FT": "full", "BitFit": "bitfit", "AdapterD": "adapter_d", "LoRA": "lora", "LoRA†": "lora †",
    "AdapterP†": "adapter_p †", "AdapterH†": "adapter_h †",
}  # fmt: skip
MODELS_2 = {"base": "RoBERTa base", "large": "RoBERTa large", "XXL": "DeBERTa XXL"}


def test_table_2(text):
    lines = [line for line in text.splitlines() if re.match(r"\| (RoBERTa|base|large|DeBERTa)", line)]
    rows = of_table(2)
    tasks = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb", "GLUE average"]
    assert len(lines) == 14 and len(rows) == 14 * len(tasks)
    for line in lines:
        name, params, *scores = (cell.strip() for cell in line.strip("|").split("|"))
        *model, method = name.split()
        mine = rows[
            (rows["model"] == MODELS_2[model[-1]])
            & (rows["method"] == METHODS_2[method])
            & (rows["trainable_params"] == round(float(params.removesuffix("M")) * 1e6))
        ].set_index("task")
        for task, score in zip(tasks, scores, strict=True):
            value, *spread = numbers(score)
            assert mine.loc[task, "value"] == value
            assert mine.loc[task, "spread"] == spread[0] if spread else mine["spread"].isna()[task]


METHODS_3 = {
    "FT": "full", "AdapterL": "adapter_l", "AdapterH": "adapter_h", "FT-Top2": "top_layers", "PreLayer": "prefix",
    "PreEmbed": "prompt", "BitFit": "bitfit", "LoRA": "lora",
}  # fmt: skip
_ENTRY = rf"({'|'.join(sorted(METHODS_3, key=len, reverse=True))}) ({_NUMBER})M ([^;]+)"


def test_table_3(text):
    words = paragraph(text, "Table 3,")
    rows, found = of_table(3), 0
    for model, part in zip(("GPT-2 medium", "GPT-2 large"), words.split(" GPT-2 L "), strict=True):
        for name, params, scores in re.findall(_ENTRY, part):
            mine = rows[(rows["model"] == model) & (rows["method"] == METHODS_3[name])]
            mine = mine[mine["trainable_params"] == round(float(params) * 1e6)]
            assert mine["metric"].tolist() == ["bleu", "nist", "meteor", "rougeL", "cider"]
            assert mine["value"].tolist() == numbers(scores.rstrip("."))
            found += 1
    assert found == 12 and len(rows) == 12 * 5


def test_table_4(text):
    words = paragraph(text, "Table 4,").split(": ", 1)[1]
    rows, found = of_table(4), 0
    for name, params, scores in re.findall(_ENTRY, words):
        mine = rows[rows["method"] == METHODS_3[name]]
        mine = mine[mine["trainable_params"] == round(float(params.replace(",", "")) * 1e6)]
        assert mine["value"].tolist() == numbers(scores.rstrip("."))
        found += 1
    assert found == 8 and len(rows) == 8 * 5


def test_table_5(text):
    words = paragraph(text, "Table 5 ")
    rows = of_table(5)
    settings = re.findall(r"\b([qkvo]+)(\d)\b", words.split(")")[0])
    assert [TARGETS[kinds] for kinds, _ in settings] * 2 == rows["targets"].tolist()
    assert [int(r) for _, r in settings] * 2 == rows["r"].tolist()
    assert set(rows["trainable_params"]) == {numbers(re.search(r"\((\d+)M", words)[1])[0] * 1e6}
    for task, name in (("wikisql", "WikiSQL"), ("mnli", "MNLI")):
        assert values(rows, task=task) == numbers(re.search(rf"{name} ([\d. ]+\d)", words)[1])


def test_table_6(text):
    words = paragraph(text, "Table 6 ")
    head, wikisql, mnli = re.split(r"WikiSQL|MNLI", words)
    rows, found = of_table(6), 0
    rs = numbers(re.search(r"r = ([\d ]+)", head)[1])
    for task, part in (("wikisql", wikisql), ("mnli", mnli)):
        for kinds, scores in re.findall(r"\b(q|qv|qkvo) ([\d. ]+\d)", part):
            mine = rows[(rows["task"] == task) & (rows["targets"] == TARGETS[kinds])]
            assert mine["r"].tolist() == rs and mine["value"].tolist() == numbers(scores)
            found += 1
    assert found == 6 and len(rows) == 30


def test_table_7(text):
    words = paragraph(text, "Table 7 ").split("Figure 3")[0]
    rows = of_table(7)
    order = ["norm_of_dW", "norm_on_dW", "norm_on_W", "norm_on_random", "amplification"]
    mine = {(r, m): v for r, m, v in zip(rows["r"].fillna(0), rows["metric"], rows["value"], strict=True)}
    small, large = words.split("r=64")
    assert numbers(small.split("=", 1)[1])[0] == mine.pop((0, "norm_of_W"))
    assert numbers(small.split("r=4")[1]) == [mine.pop((4, m)) for m in order]
    assert numbers(large) == [mine.pop((64, m)) for m in order]
    assert not mine


def test_figures(text):
    words = paragraph(text, "Table 7 ").split("Figure 3")[1]
    rows = table("Figure 3")
    assert re.search(r"share one direction with φ > 0\.5", words)
    assert values(rows, metric="shared directions") == [1] and values(rows, metric="subspace similarity") == [0.5]
    assert "Two seeds".lower() in words and len(table("Figure 4")) == 1


def test_table_18(text):
    words = paragraph(text, "Table 18 ")
    rows = of_table(18)
    assert values(rows) == numbers(words.split("): ")[1].split("(")[0])
    assert rows["r"].tolist()[-1] == 1024


def test_intrinsic_dimension(text):
    words = paragraph(text, "Intrinsic dimension d90")
    rows = table("Aghajanyan")
    said, did = words.split("DID")
    pairs = re.findall(r"(\d+)/(\d+)", said)
    models = ["BERT base", "BERT large", "RoBERTa base", "RoBERTa large"]
    for model, pair, other in zip(models, pairs, re.findall(r"(\d+)/(\d+)", did), strict=True):
        for method, printed in (("said", pair), ("did", other)):
            mine = [values(rows, model=model, method=method, task=task)[0] for task in ("mrpc", "qqp")]
            assert mine == [float(n) for n in printed]
    assert len(rows) == 16


def test_against_the_claim(text):
    words = paragraph(text, "Against the claim")
    rows = table("Shuttleworth")
    scores = rows[rows["metric"] == "accuracy"]
    for name, method, r in (("FT", "full", None), ("r=1", "lora", 1), ("r=8", "lora", 8), ("r=64", "lora", 64)):
        printed = re.search(rf"{name} (\.\d+)/(\.\d+)/(\.\d+)", words).groups()
        mine = [v for task in ("mnli", "sst2", "qqp") for v in values(scores, method=method, r=r, task=task)]
        assert mine == pytest.approx([100 * float(n) for n in printed])
    assert len(scores) == 12
    biderman = table("Biderman")
    assert re.search(r"rank (\d+)–(\d+) times", words).groups() == tuple(f"{v:g}" for v in values(biderman))
    regret = table("LoRA Without Regret")
    assert "about 10 times" in words and "under 2 times" in words and "about 2/3" in words
    assert regret["value"].tolist() == [10, 2, 0.67]


def test_the_intruders_defaults(shared):
    whole = " ".join((shared / "REFERENCE.md").read_text(encoding="utf-8").split())
    k, epsilon = re.search(r"k = (\d+), ε = ([\d.]+) by their default", whole).groups()
    rows = table("Shuttleworth")
    assert values(rows, metric="intruder k") == [float(k)]
    assert values(rows, metric="intruder epsilon") == [float(epsilon)]


def test_computed_counts(text):
    words = paragraph(text, "Parameter counts, computed")
    rows = published()
    computed = rows.loc[rows["source"].str.startswith("computed: sum of r"), "value"]
    exact = {n for n in numbers(words) if n >= 100_000 and float(n).is_integer()}
    heads = {592_130.0, 887_042.0}
    assert exact - heads <= set(computed) and len(exact) == 9
    assert any("592,130" in note for note in rows["note"])

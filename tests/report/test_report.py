"""The pages: complete, self-contained, escaped, honest about what is missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankprobe.paper.published import published
from rankprobe.report.answer import answer
from rankprobe.report.findings import Measured, find
from rankprobe.report.report import PICTURES, TABLES, build_report
from tests.report.synthetic import make_latency, make_run

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Checks nesting and collects text, tags and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def built(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    build_report(
        study, make_latency(), published(), out, title="reproduce-paper, small", settings={"command": "rankprobe x"}
    )
    return out


def test_everything_is_written(built):
    assert {p.name for p in built.iterdir()} == {"tables", "figures", "report.md", "report.html"}
    assert {p.stem for p in (built / "tables").iterdir()} == {
        "runs",
        "methods",
        "rank_sweep",
        "rank_answer",
        "claims",
        "ranks",
        "spectra",
        "truncation",
        "functional_rank",
        "latency",
        "predicted_curve",
        "predicted_summary",
    }
    assert len(list((built / "figures").iterdir())) == 14
    claims = pd.read_csv(built / "tables" / "claims.csv")
    assert set(claims["verdict"]) <= {"supported", "contradicted", "inconclusive", "not_run"}


def test_html_is_well_formed_and_needs_nothing_else(built):
    text = (built / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert page.tags.count("img") == 7 and page.tags.count("h1") == 1
    assert all(a.startswith("data:image/svg+xml;base64,") for a in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_it_opens_with_three_sentences_then_the_claims(built, findings):
    words = Reader((built / "report.html").read_text(encoding="utf-8")).words
    sentences = answer(findings)
    assert len(sentences) == 3
    places = [words.index(s) for s in sentences]
    assert places == sorted(places) and places[-1] < words.index("Claims") < words.index("What r is needed")


def test_markdown_has_the_same_answer_and_refers_to_the_figures(built, findings):
    text = (built / "report.md").read_text(encoding="utf-8")
    for sentence in answer(findings):
        assert sentence in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (built / name).exists()
    assert len(re.findall(r"!\[", text)) == 7
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 40
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_verdicts_are_told_by_sign_and_word_not_by_colour_alone(built):
    words = Reader((built / "report.html").read_text(encoding="utf-8")).words
    assert "✓ supported" in words and "? inconclusive" in words and "✗ contradicted" in words


def test_same_input_same_files(built, study, tmp_path):
    build_report(
        study,
        make_latency(),
        published(),
        tmp_path,
        title="reproduce-paper, small",
        settings={"command": "rankprobe x"},
    )
    for path in built.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(built)).read_bytes(), path.name


def test_no_file_names_this_machine(built, study):
    root = study[0]["path"].rsplit("/", 1)[0].encode()
    for path in built.rglob("*"):
        assert path.is_dir() or root not in path.read_bytes(), path.name


def test_a_refresh_writes_tables_only_and_leaves_no_temporary_file(study, tmp_path):
    build_report(study[:2], None, published(), tmp_path, title="t", settings={}, figures=False)
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {
        "runs.csv",
        "methods.csv",
        "rank_sweep.csv",
        "rank_answer.csv",
        "claims.csv",
        "ranks.csv",
        "spectra.csv",
        "truncation.csv",
        "functional_rank.csv",
    }
    build_report(study, None, published(), tmp_path, title="t", settings={}, figures=False)
    assert len(pd.read_csv(tmp_path / "tables" / "runs.csv")) == len(study)


def test_nothing_run_yet(tmp_path):
    build_report([], None, published(), tmp_path, title="t", settings={})
    words = Reader((tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "No run has finished yet." in words and words.count("Not run yet.") == 4 and "✓ supported" in words


def test_partial_results_say_what_is_missing(tmp_path):
    build_report([make_run(tmp_path / "runs", r=8, n=100)], None, published(), tmp_path / "out", title="t", settings={})
    words = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words
    assert "full fine-tuning, which it is measured against, has not finished" in words
    assert "its latency has not been measured yet" in words
    assert "– not run" not in words and "more claims are not tested by these runs" in words and "Not run yet." in words


def test_user_strings_are_escaped(tmp_path):
    evil = '<script>alert(1)</script> | a* [x](javascript:1) & "q"'
    runs = [make_run(tmp_path / "runs", r=8, n=100), make_run(tmp_path / "runs", r=4, n=100, status="failed")]
    for run in runs:
        run["task"]["name"] = evil
        run["model"]["name"] = evil
    runs[1]["error"] = evil
    build_report(runs, None, published(), tmp_path / "out", title=evil, settings={"command": evil})
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Reader(html)
    assert "script" not in page.tags and evil in page.words
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert (
        "<script>" not in text
        and not re.search(r"(?<!\\)\]\(javascript", text)
        and r"\| a\* [x\](javascript:1)" in text
    )


def test_failed_and_diverged_runs_are_shown(tmp_path):
    runs = [make_run(tmp_path / "runs", r=8, n=100), make_run(tmp_path / "runs", r=8, seed=1, n=100, status="diverged")]
    build_report(runs, None, published(), tmp_path / "out", title="t", settings={})
    words = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words
    assert "1 diverged or failed" in words and "loss is NaN" in words and "1 diverged" in words


def test_several_comparisons_get_folders_and_a_page_above_them(tmp_path):
    store = tmp_path / "runs"
    runs = [
        make_run(store, r=8, n=100),
        make_run(store, r=4, n=100),
        make_run(store, r=8, n=100, task="sst2", eval_sha256="f" * 64),
        make_run(store, r=8, n=100, dtype="float16"),
    ]
    out = tmp_path / "out"
    build_report(runs, None, published(), out, title="all", settings={})
    folders = ["all-MiniLM-L6-v2-docmatch-eval-1", "all-MiniLM-L6-v2-docmatch-eval-2", "all-MiniLM-L6-v2-sst2-eval"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == folders
    assert not (out / "tables").exists()
    assert len(pd.read_csv(out / folders[0] / "tables" / "methods.csv")) == 2
    page = Reader((out / "report.html").read_text(encoding="utf-8"))
    assert sorted(page.addresses) == [f"{f}/report.html" for f in folders]
    assert all((out / a).exists() for a in page.addresses) and "3 comparisons" in page.words
    text = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"]({f}/report.md)" in text and (out / f / "report.md").exists() for f in folders)
    assert (out / folders[0] / "report.md").read_text(encoding="utf-8").startswith("# all\n")


def test_the_title_is_the_main_comparisons_and_others_are_named_by_what_they_are_of(tmp_path):
    runs = [make_run(tmp_path / "runs", r=8, n=100),
            make_run(tmp_path / "runs", r=8, n=100, task="sst2", eval_sha256="f" * 64)]  # fmt: skip
    build_report(runs, None, published(), tmp_path, title="What r?", settings={}, main=runs[0]["run_id"])
    pages = [(tmp_path / part / "report.md").read_text(encoding="utf-8") for part in ("", "all-MiniLM-L6-v2-sst2-eval")]
    assert pages[0].startswith("# What r?\n") and pages[1].startswith("# all-MiniLM-L6-v2 on sst2\n")


def test_answers_for_every_outcome(tmp_path):
    def first_two(name, full, lora, head=None, seeds=3):
        runs = [
            make_run(tmp_path / name, seed=seed, wrong=wrong, **settings)
            for wrong, settings in ((full, {"method": "full"}), (lora, {"r": 1}), (lora, {"r": 8}))
            for seed in range(seeds)
        ]
        runs += [make_run(tmp_path / name, method="head", wrong=head)] if head is not None else []
        return answer(find(runs, None, published()))[:2]

    a, b = first_two("same", np.arange(300), np.arange(303))
    assert a.startswith("On docmatch, LoRA on q,v: r = 1 is the smallest r equivalent to full fine-tuning within 2")
    assert "is as good as full fine-tuning here, within 2 points" in b
    a, b = first_two("worse", np.arange(300), np.arange(450))
    assert "no r tested is within 2 points" in a and "is worse than full fine-tuning here by more than 2 points" in b
    assert "−10.0 [" in b
    a, b = first_two("better", np.arange(450), np.arange(300))
    assert "is better by more than that" in a and "is better than full" in b
    a, b = first_two("open", np.arange(300), np.arange(40, 360))
    assert "not shown with 3 seeds" in a and "is not settled" in b
    a, b = first_two("moot", np.arange(300), np.arange(300), np.arange(5, 305))
    assert "cannot be told from these runs" in a and "which means little" in b
    a, b = first_two("one", np.arange(300), np.arange(303), seeds=1)
    assert "not shown with 1 seed" in a and "what another seed would do is not known" in a
    assert b.endswith("but with fewer than 3 seeds that may be their luck.")


def test_a_clones_answer_goes_down_to_the_first_r_that_fails(tmp_path):
    """Without predictions there are t intervals over seeds alone; a lucky small r is no answer there either."""
    scores = {8: (0.80, 0.802, 0.801), 4: (0.76, 0.80, 0.78), 1: (0.80, 0.801, 0.803)}
    runs = [make_run(tmp_path, method="full", seed=seed, accuracy=0.8 + seed / 1000) for seed in range(3)]
    runs += [make_run(tmp_path, r=r, seed=seed, accuracy=a) for r, of in scores.items() for seed, a in enumerate(of)]
    for run in runs:
        (Path(run["path"]) / "predictions.csv").unlink()
    assert "On docmatch r = 8 is enough" in answer(find(runs, None, published()))[0]


@pytest.mark.parametrize("margin, told", [(0.02, True), (0.05, False)])
def test_the_margin_asked_for_is_what_the_head_is_held_against_too(tmp_path, margin, told):
    runs = [
        make_run(tmp_path, seed=seed, wrong=np.arange(wrong), **settings)
        for wrong, settings in ((300, {"method": "full"}), (303, {"r": 8}), (355, {"method": "head"}))
        for seed in range(3)
    ]  # full gains 3.7 points over the head
    found = answer(find(runs, None, published(), margin=margin))[0]
    assert ("r = 8 is the smallest r" in found) is told and ("cannot be told" in found) is not told


def test_other_metrics_are_no_percentages(tmp_path):
    runs = [
        make_run(tmp_path / "runs", method="full", n=200, accuracy=0.85, metrics=("matthews", "accuracy")),
        make_run(tmp_path / "runs", r=8, n=200, accuracy=0.8, metrics=("matthews", "accuracy")),
    ]
    for run in runs:
        table = pd.read_csv(f"{run['path']}/predictions.csv")
        run["metrics"]["matthews"] = float(np.corrcoef(table["label"], table["prediction"])[0, 1])
    found = find(runs, None, published())
    methods = found.tables["methods"]
    assert methods["accuracy_mean"].tolist() == pytest.approx([r["metrics"]["matthews"] for r in runs])
    assert methods["ci_method"].str.startswith("percentile bootstrap").all()
    assert methods["diff_vs_full"].iloc[1] == pytest.approx(
        runs[1]["metrics"]["matthews"] - runs[0]["metrics"]["matthews"]
    )
    assert " % against" not in answer(found)[0]


def test_the_report_is_about_the_main_run_before_that_one_is_done(tmp_path):
    """Of a tuned sweep whose smaller runs end first: no folder is left that the finished report does not have."""
    runs = [make_run(tmp_path / "runs", method="full", split="tuning"), make_run(tmp_path / "runs", r=1)]
    build_report(runs, None, published(), tmp_path / "out", title="t", settings={}, figures=False, main="full-to-come")
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["all-MiniLM-L6-v2-docmatch-tuning", "tables"]
    assert pd.read_csv(tmp_path / "out" / "tables" / "methods.csv")["r"].tolist() == [1]


def test_without_full_fine_tuning_the_answer_is_against_the_largest_r(tmp_path):
    runs = [make_run(tmp_path, r=r, accuracy=0.77, seed=seed, n=4000) for r in (2, 8) for seed in (0, 1, 2)]
    found = find(runs, None, published())
    assert answer(found)[0].startswith("On docmatch, LoRA on q,v: ") and "r = 8 (the largest)" in answer(found)[0]
    one = find(runs[:1], None, published())
    assert "full fine-tuning, which it is measured against, has not finished" in answer(one)[0]


def test_a_perplexitys_answer_is_the_tests_one(tmp_path):
    runs = []
    noise = np.random.default_rng(0).gamma(4.0, 0.3, 300)
    tokens = np.random.default_rng(1).integers(5, 30, 300)
    for method, r in (("full", None), ("lora", 2), ("lora", 8)):
        for seed in range(3):
            run = make_run(tmp_path, method=method, r=r, seed=seed, n=300, task="docgen",
                           metrics=("perplexity", "token_accuracy"))  # fmt: skip
            losses = tokens * (noise + 1e-4 * np.random.default_rng([seed, r or 0]).normal(0, 1, 300))
            table = {
                "row": [f"row{i}" for i in range(300)],
                "label": tokens,
                "prediction": tokens // 2,
                "score": losses,
            }
            pd.DataFrame(table).to_csv(Path(run["path"]) / "predictions.csv", index=False)
            loss = losses.sum() / tokens.sum()
            run["task"]["labels"] = []
            run["metrics"] = {"perplexity": np.exp(loss), "token_accuracy": 0.5, "loss": loss}
            runs.append(run)
    first = answer(find(runs, None, published()))[0]
    assert first.startswith(
        "LoRA on q,v: r = 2 is the smallest r equivalent to full fine-tuning within 2 % in perplexity"
    )
    assert "no margin" not in first and "less is better" in first
    single = answer(find([run for run in runs if run["spec"]["seed"] == 0], None, published()))[0]
    assert single.startswith("On docgen LoRA with r = ") and "(one seed)" in single


def test_what_a_report_writes_can_be_taken_away(tmp_path):
    """A table or picture that the two lists lack would be left over of other runs."""
    found = find([make_run(tmp_path, r=8)], None, published(), Measured())
    assert found.tables.keys() | {"figure3", "figure4", "table2", "tuning"} == set(TABLES)
    medium = Path(__file__).parents[2] / "results" / "reproduce-paper-medium"
    written = {folder: {path.stem for path in (medium / folder).iterdir()} for folder in ("tables", "figures")}
    assert set(TABLES) - written["tables"] == {"tuning"} and not written["tables"] - set(TABLES)
    assert written["figures"] == set(PICTURES)

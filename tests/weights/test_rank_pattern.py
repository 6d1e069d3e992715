"""Patterns of r by matrix: one spelling each, exact names before expressions, nothing named in vain or twice."""

import pytest

from rankprobe.errors import UsageError
from rankprobe.weights.architecture import block_sites
from rankprobe.weights.rank_pattern import canonical_pattern, pattern_tag, ranks_by_site, site_path

LEAVES = [f"{i}.attention.self.{leaf}" for i in (0, 1, 11) for leaf in ("query", "value")]
BERT = {f"bert.encoder.layer.{leaf}.weight": (32, 32) for leaf in LEAVES}
SITES = block_sites(BERT)
FUSED = block_sites({f"transformer.h.{i}.attn.c_attn.weight": (32, 96) for i in range(2)})


def by_path(sites, r, pattern):
    names = {site.name: site_path(site) for site in sites}
    return {names[name]: k for name, k in ranks_by_site(sites, r, canonical_pattern(pattern)).items()}


def test_equal_patterns_are_equal_tuples():
    a, b = canonical_pattern({"x": 1, "a": 0}), canonical_pattern([["a", 0], ["x", 1]])
    assert a == b == (("a", 0), ("x", 1)) and pattern_tag(a) == pattern_tag([list(pair) for pair in b])
    assert pattern_tag(a) != pattern_tag(canonical_pattern({"x": 2, "a": 0}))


def test_ends_of_paths_are_matched_as_peft_does_and_the_rest_gets_r():
    found = by_path(SITES, 4, {"layer.1.attention.self.query": 1, r"layer\.\d+\.attention\.self\.value": 0})
    assert found == {f"bert.encoder.layer.{i}.attention.self.{leaf}": {"value": 0, "query": 1 if i == 1 else 4}[leaf]
                     for i in (0, 1, 11) for leaf in ("query", "value")}  # fmt: skip


def test_a_whole_path_counts_before_an_expression():
    path = "bert.encoder.layer.1.attention.self.query"
    found = by_path(SITES, 4, {path: 7, "query": 2})
    assert found[path] == 7 and sorted(found.values()) == [2, 2, 4, 4, 4, 7]
    assert by_path(SITES[2:3], 4, {path: 7, "query": 2}) == {path: 7}, "a path may override an expression"


def test_parts_of_a_fused_matrix_have_an_r_each():
    assert [site_path(site) for site in FUSED[:3]] == [f"transformer.h.0.attn.c_attn.{kind}" for kind in "qkv"]
    assert list(by_path(FUSED, 3, {"c_attn.k": 0, r"1\.attn\.c_attn\.v": 5}).values()) == [3, 0, 3, 3, 0, 5]


@pytest.mark.parametrize(("pattern", "message"), [
    ({}, "rank_pattern must give some matrices an r. Got nothing"),
    ({"query": -1}, "r of query in rank_pattern must be a whole number of at least 0. Got -1"),
    ({"query": 2.5}, "must be a whole number of at least 0. Got 2.5"),
    ({"query": True}, "must be a whole number of at least 0. Got True"),
    ({"query": "2"}, "must be a whole number of at least 0. Got '2'"),
    ({"(": 1}, "keys of rank_pattern must be regular expressions. Got '\\('"),
    ({"": 1}, "keys of rank_pattern must be names of matrices"),
    ({"key": 1}, "keys of rank_pattern must name matrices among the targets. Got key, which matches none of 6"),
    ({"quer": 1}, "must name matrices among the targets. Got quer,"),
    ({"query": 1, "layer.1.attention.self.quer[y]": 1}, "rank_pattern must name each matrix once. Got .*layer.1.att"),
    ({"query": 0, "value": 0}, "rank_pattern must leave a matrix to adapt. Got r = 0 for all"),
])  # fmt: skip
def test_what_is_refused(pattern, message):
    with pytest.raises(UsageError, match=message):
        ranks_by_site(SITES, 4, canonical_pattern(pattern))

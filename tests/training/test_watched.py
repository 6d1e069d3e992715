"""What is watched in models that a Trainer's test does not reach; the rest is in tests/test_callback.py."""

import pytest
import torch
from torch import nn

from rankprobe.errors import UsageError
from rankprobe.training.watched import labels, watched_sites
from rankprobe.weights.architecture import WeightSite


def block():
    return nn.ModuleDict({"0": nn.ModuleDict({"attention": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})})


def test_a_label_that_two_matrices_share_is_their_path_instead():
    names = [f"{half}.{i}.attention.query.weight" for half in ("encoder", "decoder") for i in (0, 1)]
    sites = [WeightSite(name, int(name.split(".")[1]), "q", (4, 4)) for name in [*names, "encoder.2.query.weight"]]
    paths = ["encoder.0.attention.query", "encoder.1.attention.query", "decoder.0.attention.query"]
    assert labels(sites) == [*paths, "decoder.1.attention.query", "layer2.q"]


def test_a_sharded_model_is_refused():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = block()

    with pytest.raises(UsageError, match="model must hold its matrices whole.*Got FullyShardedDataParallel. Train wit"):
        watched_sites(FullyShardedDataParallel(), "q")


def test_zero_3_is_refused():
    model = nn.ModuleDict({"layers": block()})
    weight = model["layers"]["0"]["attention"]["q_proj"].weight
    assert len(watched_sites(model, "q")) == 1
    weight.data, weight.ds_id = torch.empty(0), 7
    with pytest.raises(UsageError, match="Got ZeRO-3 parameters"):
        watched_sites(model, "q")

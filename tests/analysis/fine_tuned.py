"""Tiny models with every parameter changed, on disk, and what they compute; truncations by SciPy."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.linalg
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import make_tiny

CLASSES = {
    "bert": ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"),
    "roberta": ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"),
    "llama": ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"),
    "gpt2": ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"),
}
_TOKENS = torch.tensor([[7, 30, 12, 55, 21, 80]])


def load(folder, class_name):
    """A model of this class with three labels; what the files lack is random."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    labels = {"num_labels": 3} if class_name.endswith("Classification") else {}
    return getattr(transformers, class_name).from_pretrained(folder, **labels).eval()


def fine_tune(kind, class_name, folder, *, size=0.05):
    """Write ``base`` (without a head) and ``tuned`` (every parameter moved) below a folder; return the two."""
    base = make_tiny(kind, folder / "base")
    model = load(base, class_name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "tuned")
    return base, folder / "tuned"


def logits(model):
    """What a model computes for a few tokens."""
    with torch.no_grad():
        out = model(input_ids=_TOKENS)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).double()


def with_adapter(base, class_name, adapter):
    """The base with an adapter put on by peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # peft's about tied embeddings and mixed Conv1D and Linear targets, transformers' about its own renaming
        for expected in ("Model has `tie_word_embeddings", "fan_in_fan_out is set to", ".*is_gradient_checkpointing"):
            warnings.filterwarnings("ignore", message=expected)
        return PeftModel.from_pretrained(load(base, class_name), adapter).eval()


def truncated(dW, k):
    """The best part of rank k."""
    U, S, Vh = scipy.linalg.svd(np.asarray(dW, dtype=np.float64), full_matrices=False)
    return torch.from_numpy(U[:, :k] * S[:k] @ Vh[:k])


def rebuilt(base, tuned, class_name, rank_of):
    """TUNED with W0 + [dW]_k in place of every matrix that the base has, k by module path; all else as in TUNED."""
    model, before = load(tuned, class_name), load(base, class_name)
    known = load_file(base / "model.safetensors")
    prefix = f"{model.base_model_prefix}."
    matrices = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    modules = {path: module for path, module in model.named_modules() if isinstance(module, matrices)}
    old = dict(before.named_parameters())
    with torch.no_grad():
        for name, W in model.named_parameters():
            module = name.removesuffix(".weight")
            if module in modules and ({name, name.removeprefix(prefix)} & known.keys()):
                W.copy_(old[name].double() + truncated((W - old[name]).double(), rank_of(module)))
    return model

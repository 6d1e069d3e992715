"""A pretrained model in float32, as a classifier or a language model: what it lacks from a seed, no foreign code."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must
from rankprobe.weights.lacking import may_be_new
from rankprobe.weights.model_files import VOCABULARY_FILES, one_line, tokenizer_files, weight_files
from rankprobe.weights.source import ModelSource, find_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ModelSource", "config_folder", "find_model", "load_causal_lm", "load_classifier", "load_config"]

# What transformers raises for a config.json that it has no class for, or cannot parse.
_UNKNOWN = (ValueError, KeyError, OSError, TypeError)
# Models whose answer to a text is another one with padding on its right.
_READS_PADDING = {
    "xlnet": "whose head reads a row's last position",
    "fnet": "which mixes padding into every row",
    "funnel": "which mixes padding into every row",
}


def load_classifier(
    source: ModelSource, num_labels: int, *, seed: int, problem: str = "classification"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load a model with a classification or regression head, in float32 on the CPU.

    The head comes from the checkpoint where it has one of the right shape, and is drawn from ``seed`` where not.
    The global random state is left as it was. No code that came with the model is run.

    Parameters
    ----------
    source : ModelSource
    num_labels : int
        At least 2; for regression 1.
    seed : int
        Of the parameters that the checkpoint lacks.
    problem : str
        ``"classification"`` or ``"regression"``.

    Returns
    -------
    model : PreTrainedModel
        float32, in evaluation mode, with scaled-dot-product attention where the architecture has it.
    tokenizer : PreTrainedTokenizerBase
        With a pad token (the end-of-text token where the model has no other) and padding on the right.
    missing : list of str
        Names of the parameters drawn from ``seed``, sorted.

    Raises
    ------
    UsageError
        If the architecture has no sequence-classification head, the weights cannot be read or belong to another
        architecture, or the tokenizer is missing or does not fit.
    """
    from transformers import AutoModelForSequenceClassification

    if problem not in ("classification", "regression"):
        raise UsageError(must("problem", "be classification or regression", problem, "Pass one of the two"))
    if num_labels != 1 if problem == "regression" else num_labels < 2:
        rule = "be 1 for regression and 2 or more for classification"
        raise UsageError(must("num_labels", rule, num_labels, "Check the task's label column"))
    with quiet_transformers():
        config, model_class = _classifier_config(source, num_labels, problem)
        return _load(AutoModelForSequenceClassification, model_class, config, source, seed)


def load_causal_lm(source: ModelSource, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load a decoder with its language-modelling head, in float32 on the CPU.

    As :func:`load_classifier` in all else.

    Parameters
    ----------
    source : ModelSource
    seed : int
        Of the parameters that the checkpoint lacks: none but in a decoder that was saved without its output layer, and
        whose output layer is not its embeddings once more.

    Returns
    -------
    model, tokenizer, missing
        As :func:`load_classifier` gives them.

    Raises
    ------
    UsageError
        If the architecture is no decoder alone, or as for :func:`load_classifier`.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        config, model_class = _causal_config(source)
        return _load(AutoModelForCausalLM, model_class, config, source, seed)


def load_config(name_or_path: str) -> PretrainedConfig:
    """A model's configuration alone: of a folder (weights need not be there), else of what :func:`find_model` finds.

    Raises
    ------
    UsageError
        If there is no such model, or its config.json cannot be read.
    """
    from transformers import AutoConfig

    folder = config_folder(name_or_path)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except _UNKNOWN as error:
        rule = "be of an architecture that this transformers knows"
        raise UsageError(must("config.json", rule, one_line(error), "Pass another --model")) from error
    except Exception as error:
        raise _bad_config(error, folder) from error


def config_folder(name_or_path: str) -> Path:
    """The folder of a model's config.json: the one named (weights need not be there), else what is found by the name.

    Raises
    ------
    UsageError
        As :func:`find_model`.
    """
    folder = Path(name_or_path).expanduser()
    return folder if (folder / "config.json").is_file() else find_model(name_or_path).path


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' reports and bars: what was missing is returned, and a new head is what was asked for."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(
    auto_class: type, model_class: type, config: PretrainedConfig, source: ModelSource, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    import torch

    tokenizer = load_tokenizer(source)
    # fork_rng without devices: the model is built on the CPU, and asking for CUDA's state would start CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = auto_class.from_pretrained(
                source.path,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager",
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=weight_files(source.path)[0].suffix == ".safetensors",
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except _unreadable_errors() as error:
            got = f"{one_line(error)} in {source.path}"
            raise UsageError(must("The model's weights", "be readable", got, "Fetch the model again")) from error
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    _refuse_missing_body(model, missing, source)
    _settle_tokenizer(model, tokenizer, source)
    return model.eval(), tokenizer, missing


def _classifier_config(source: ModelSource, num_labels: int, problem: str) -> tuple[PretrainedConfig, type]:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    kind = "regression" if problem == "regression" else "single_label_classification"
    config, model_class = _known(
        source, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, num_labels=num_labels, problem_type=kind
    )
    if model_class is None:
        rule = "be one that this transformers has a sequence-classification head for"
        got = f"{source.architecture!r} in {source.path}"
        raise UsageError(must("The model's architecture", rule, got, "Pass an encoder or decoder such as BERT"))
    return config, model_class


def _causal_config(source: ModelSource) -> tuple[PretrainedConfig, type]:
    """Of a decoder. For encoders too transformers has a class with this head, and its tokens would see what follows."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config, model_class = _known(source, MODEL_FOR_CAUSAL_LM_MAPPING)
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if model_class is None or encoder or getattr(config, "is_encoder_decoder", False):
        rule = "be a decoder, whose tokens see only what was before them, for a language-modelling task"
        got = f"{source.architecture!r} in {source.path}"
        raise UsageError(must("The model", rule, got, "Pass a model such as GPT-2 or Llama"))
    return config, model_class


def _known(source: ModelSource, classes: Mapping, **settings: object) -> tuple[PretrainedConfig | None, type | None]:
    """A model's config and its class among transformers' ``classes``; None for what is not known, or has no class."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True, **settings)
        return config, classes.get(type(config), None)
    except _UNKNOWN:
        return None, None
    except Exception as error:
        raise _bad_config(error, source.path) from error


def _bad_config(error: Exception, folder: Path) -> UsageError:
    """Of a field that its architecture refuses: each config class checks its fields in its own way."""
    got = f"{one_line(error)} in {folder}"
    return UsageError(must("config.json", "have fields of the right type", got, "Correct it"))


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    # Asked first: without files transformers 5 builds a tokenizer with an empty vocabulary and says nothing.
    if not tokenizer_files(source.path):
        got = f"{source.path} with none of {', '.join(VOCABULARY_FILES)}"
        raise UsageError(must("A model's folder", "hold its tokenizer", got, "Put the model's tokenizer files there"))
    try:
        return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a file that it cannot parse
        got = f"{one_line(error)} in {source.path}"
        raise UsageError(must("The model's tokenizer", "be readable", got, "Fetch the model again")) from error


def _unreadable_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (SafetensorError, OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def _refuse_missing_body(model: PreTrainedModel, missing: list[str], source: ModelSource) -> None:
    """A head, or a pooler that the checkpoint was trained without, may be new; embeddings and blocks may not."""
    body = [name for name in missing if name.startswith(f"{model.base_model_prefix}.") and not may_be_new(name)]
    if body:
        got = f"{len(body)} missing or of another shape, such as {body[0]}, in {source.path}"
        next_step = "Check that config.json belongs to these weights"
        raise UsageError(must("The model's weights", "cover its embeddings and blocks", got, next_step))


def _takes_token_types(config: PretrainedConfig) -> bool:
    """Whether a model tells a pair's texts apart by more than the tokens between them."""
    return getattr(config, "type_vocab_size", 0) > 1


def check_padding(config: PretrainedConfig, source: ModelSource) -> None:
    """Refuse a model whose answer to a text depends on what its batch pads it with, on the right as here.

    Raises
    ------
    UsageError
    """
    if (why := _READS_PADDING.get(config.model_type)) is not None:
        got = f"{config.model_type}, {why}, in {source.path}"
        raise UsageError(must("The model", "read texts that are padded on the right", got, "Choose another model"))


def _settle_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: ModelSource) -> None:
    """Make tokenizer and model agree: what pads, on which side, what a row consists of, and the words they know."""
    check_padding(model.config, source)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            got = f"{source.path} with neither a pad nor an end-of-text token"
            raise UsageError(must("The tokenizer", "have a pad token", got, "Add one to tokenizer_config.json"))
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    # What a tokenizer makes of its own accord is its class's habit, not what this model was trained with: BERT's
    # tokenizer on a RoBERTa has types that it has no embedding for, and GPT-2 would add words' embeddings for them.
    types = ["token_type_ids"] * _takes_token_types(model.config)
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    # Decoders find a text's last token as the last that is not the config's pad token: it must be what batches are
    # padded with, and some models' files disagree on it (a config with 0 or -1, a tokenizer without one).
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        got = f"{len(tokenizer)} tokens for {rows} embeddings in {source.path}"
        raise UsageError(
            must("The tokenizer", "fit the model's embeddings", got, "Pass the tokenizer it was trained with")
        )

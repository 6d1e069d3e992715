"""Tiny random pretrained models of every tested architecture, made offline in well under a second."""

from __future__ import annotations

import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ("bert", "roberta", "distilbert", "deberta-v2", "electra", "gpt2", "llama")

_WORDS = (
    "the a an and or of to in is it for with on as are was be this that return value values array list string number "
    "good bad fine great awful film movie story plot long short true false row column data set file name index sum "
    "mean max min sort add remove find not no yes all each one two three from by at into over under"
).split()


def make_tiny(kind: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a base model (no head) with hidden size 32, 2 layers, 4 heads and its fast tokenizer; return the folder.

    Parameters
    ----------
    kind : str
        One of ``KINDS``; GPT-2 and Llama come without a pad token, as the real ones do.
    folder : str or Path
        Made if it is not there.
    seed : int
        Of the random weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind)
    config = _config(kind, len(tokenizer), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_config(config)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)
    return folder


def _config(
    kind: str, vocab_size: int, tokenizer: transformers.PreTrainedTokenizerFast
) -> transformers.PretrainedConfig:
    bert_like = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "bert":
        return transformers.BertConfig(**bert_like)
    if kind == "roberta":
        return transformers.RobertaConfig(**bert_like, **ends, type_vocab_size=1)
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=vocab_size,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=130,
            pad_token_id=0,
        )
    if kind == "deberta-v2":  # the settings of DeBERTa-v3
        return transformers.DebertaV2Config(
            **bert_like,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_biased_input=False,
            max_relative_positions=-1,
        )
    if kind == "electra":
        return transformers.ElectraConfig(**bert_like, embedding_size=16)
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=130, **ends)
    if kind == "llama":
        return transformers.LlamaConfig(**bert_like, **ends, num_key_value_heads=2)
    raise ValueError(f"kind must be one of {KINDS}. Got {kind!r}.")


def _tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    if kind in ("bert", "distilbert", "electra"):
        return _wordpiece(with_types=kind != "distilbert")
    return _byte_level_bpe(kind)


def _wordpiece(with_types: bool) -> transformers.PreTrainedTokenizerFast:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokens += [word for word in _WORDS if word not in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=inputs if with_types else [name for name in inputs if name != "token_type_ids"],
    )


def _byte_level_bpe(kind: str) -> transformers.PreTrainedTokenizerFast:
    special = {
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "deberta-v2": ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
        "gpt2": ["<|endoftext|>"],
        "llama": ["<unk>", "<s>", "</s>"],
    }[kind]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind != "gpt2")
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join(_WORDS)], trainer)
    ids = {token: raw.token_to_id(token) for token in special}
    named = {"model_max_length": 128, "model_input_names": ["input_ids", "attention_mask"]}
    if kind == "roberta":
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[(t, ids[t]) for t in ("<s>", "</s>")]
        )
        named |= {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        named |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    elif kind == "deberta-v2":
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
        )
        named |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        named |= {"mask_token": "[MASK]"}
    elif kind == "gpt2":
        named |= {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    else:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", ids["<s>"])]
        )
        named |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **named)

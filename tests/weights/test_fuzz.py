"""Two thousand damaged files and more: each ends in an answer or in one line, soon and in little memory."""

import json
import math
import mmap
import os
import random
import struct
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from rankprobe.analysis.spectrum import measure
from rankprobe.errors import RankprobeError
from rankprobe.weights.checkpoint import checkpoint_in_memory
from rankprobe.weights.inputs import open_input
from rankprobe.weights.pair import pair
from tests.weights.memory import adapter_of, bert_like, nudged

SECONDS, MIB = 2.0, 1 << 20
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "F4", "F6_E2M3",
          "X", "")
AS_WIDE = {"F32": ("I32", "U32"), "I32": ("F32",), "U32": ("F32",)}
NUMBERS = (0, 1, -1, 2, 7, 8, 16, 64, 255, 2**31, 2**32 + 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308,
           float("nan"), float("inf"))
TEXTS = ("", "q", "LORA", "lora", "é", "\u0000", "a\nb", "\u001b[2J", "x" * 5000, "../../etc", "(", "[a-", "(?P<x>",
         "*", ".*", r"0\..*", "query", "$", "a{99999}", "(.*)*x", "((.+)+)+!", "(?:a|aa)*b", "🤗" * 40, "nan", "4")
DEEP = tuple(f"<{depth} deep>" for depth in (1, 40, 200, 900, 5000))
KEYS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_dora", "peft_type", "lora_bias",
        "target_parameters", "layer_replication", "base_model_name_or_path", "init_lora_weights", "use_rslora",
        "fan_in_fan_out", "query", "new")


def some_json(chance, depth=0):
    """Any JSON value, now and then nested deeper than parsers like."""
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 5:
        return (None, chance.random() < 0.5, chance.choice(NUMBERS), chance.choice(TEXTS), chance.randint(-3, 9))[kind]
    if kind == 5:
        return chance.choice(DEEP)
    if kind == 6:
        return [some_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice((*TEXTS, *KEYS)): some_json(chance, depth + 1) for _ in range(chance.randrange(4))}


def places(value):
    """Every container in a JSON value with each of its keys."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, of in inside:
        yield value, key
        yield from places(of)


def edit_json(chance, config):
    """Put another value, or another key, somewhere in a JSON object."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = list(places(config))
        # Those inside another value are few and matter most: the patterns.
        inner = [of for of in found if of[0] is not config]
        where, key = chance.choice(inner if inner and chance.random() < 0.5 else found)
        what = chance.randrange(5)
        if what == 0 and isinstance(where, dict):
            where[chance.choice((*TEXTS, *KEYS))] = where.pop(key)
        elif what == 1:
            del where[key]
        elif what == 2 and isinstance(where, dict):
            where[chance.choice(KEYS)] = some_json(chance)
        else:
            where[key] = some_json(chance)
        if not config:
            break
    return config


def as_text(value, **how):
    """JSON in bytes, with lists nested as deep as their stand-ins say."""
    text = json.dumps(value, **how)
    for depth in DEEP:
        brackets = int(depth[1 : depth.index(" ")])
        text = text.replace(f'"{depth}"', "[" * brackets + "]" * brackets)
    return text.encode()


def damage(chance, content):
    """Flip, cut, repeat or insert bytes."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, what = chance.randrange(len(content)), chance.randrange(8)
        if what < 5:
            content[at] ^= 1 << chance.randrange(8)
        elif what == 5:
            content[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 8))))
        elif what == 6:
            del content[at : at + chance.choice((1, 4, 64))]
        else:
            content[at:] = content[at:][: chance.randrange(len(content))]
        content = content or bytearray(b"\0")
    return bytes(content)


def mutated_config(chance, content):
    if chance.random() < 0.3:
        return damage(chance, content)
    return as_text(edit_json(chance, json.loads(content)), ensure_ascii=chance.random() < 0.5)


def mutated_safetensors(chance, content):
    """Damage anywhere, a wrong length of the header, or a header that is well-formed and says something else."""
    length = int.from_bytes(content[:8], "little")
    what = chance.random()
    if what < 0.15:
        return damage(chance, content)
    if what < 0.3:
        data = bytearray(content)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(8 + length, len(data))] = chance.randrange(256)
        return bytes(data)
    if what < 0.4:
        return content[: chance.randrange(len(content))]
    if what < 0.5:
        other = chance.choice((0, 1, 8, length - 1, length + 1, 2 * length, len(content), 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", other) + content[8:]
    header = json.loads(content[8 : 8 + length])
    for _ in range(chance.choice((1, 1, 2))):
        edit_header(chance, header)
    text = as_text(header)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def edit_header(chance, header):
    """Change what a safetensors header says of one tensor."""
    name = chance.choice([key for key, of in header.items() if isinstance(of, dict)])
    entry, what = header[name], chance.randrange(12)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if what == 0:
        entry["dtype"] = chance.choice(DTYPES)
    elif what == 1 and isinstance(shape, list):
        chance.shuffle(shape)
    elif what == 2 and isinstance(shape, list):
        shape.insert(chance.randrange(len(shape) + 1), chance.choice((1, 1, 1, *NUMBERS)))
    elif what == 3 and isinstance(shape, list) and all(type(n) is int for n in shape):
        entry["shape"] = [math.prod(shape)]
    elif what == 4 and isinstance(offsets, list) and offsets:
        offsets[chance.randrange(len(offsets))] = chance.choice(NUMBERS)
    elif what == 5:
        other = chance.choice([of for of in header.values() if isinstance(of, dict)])
        entry["data_offsets"], other["data_offsets"] = other.get("data_offsets"), entry.get("data_offsets")
    elif what == 6:
        parts = name.split(".")
        words = (*TEXTS, "weight", "lora_A", "lora_B", "7", "bias", "value")
        parts[chance.randrange(len(parts))] = chance.choice(words)
        header[".".join(parts)] = header.pop(name)
    elif what in (8, 9):
        entry["dtype"] = chance.choice(AS_WIDE.get(entry.get("dtype"), DTYPES))
    elif what == 10:
        edit_json(chance, header)
    else:
        header["__metadata__"] = some_json(chance)


@dataclass
class Outcome:
    """What became of a file: ``answer``, or the error's class and text; how long and how much memory it took."""

    what: str
    message: str
    seconds: float
    grown: int


def peak(reset=False):
    """The most memory this process held since the last reset, in bytes; 0 where the system does not say."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def attempt(base, where, chance):
    """Open, pair and measure as the commands do."""
    before, start = peak(reset=True), time.perf_counter()
    try:
        pairing = pair(base, open_input(where))
        rows = [measure(m.delta())[0] for m in chance.sample(pairing.matrices, min(1, len(pairing.matrices)))]
        numbers = [v for row in rows for v in (row["fro_norm"], row["sigma_max"], row["stable_rank"])]
        numbers += [v.change_norm for v in pairing.vectors()]
        what, message = "answer", ""
        if not all(map(math.isfinite, numbers)):
            what, message = "an answer that is not finite", str(numbers)
    except RankprobeError as error:
        what, message = "error", str(error)
    except Exception as error:
        what, message = "TRACEBACK", f"{type(error).__name__}: {error}"
    return Outcome(what, message, time.perf_counter() - start, peak() - before)


def model_folder(folder):
    (folder / "model.safetensors").write_bytes(save(nudged(bert_like())))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder, "model.safetensors", checkpoint_in_memory(bert_like())


def adapter_folder(folder):
    """A PEFT adapter on queries and keys, with its head, a pattern, and a base."""
    modules = {f"encoder.layer.{i}.attention.self.{kind}": (8, 8) for i in (0, 1) for kind in ("query", "key")}
    made = adapter_of(
        folder, modules, {"classifier.weight": torch.ones(3, 8)}, r=2, rank_pattern={r"0\..*query": 2},
        alpha_pattern={"key": 6}, target_modules=["query", "key"], task_type="SEQ_CLS", use_rslora=False,
        modules_to_save=["classifier"], base_model_name_or_path="org/bert", init_lora_weights=True, lora_dropout=0.1,
        bias="none", use_dora=False, layer_replication=None, megatron_config=None, loftq_config={}, auto_mapping=None,
        target_parameters=None, fan_in_fan_out=False,
    )  # fmt: skip
    return made, "adapter_model.safetensors", checkpoint_in_memory(bert_like())


def config_folder(folder):
    made, _, base = adapter_folder(folder)
    return made, "adapter_config.json", base


def pickled_folder(folder):
    torch.save(nudged(bert_like()), folder / "pytorch_model.bin")
    return folder, "pytorch_model.bin", checkpoint_in_memory(bert_like())


def sharded_folder(folder, name="model.safetensors.index.json"):
    """Two shards, their index, and a config of a model in float8."""
    tensors, shards = nudged(bert_like()), {}
    scaled = next(n for n, t in tensors.items() if t.dim() == 2)
    tensors |= {scaled: tensors[scaled].to(torch.float8_e4m3fn), f"{scaled}_scale_inv": torch.ones(5, 2)}
    for i in (0, 1):
        names = list(tensors)[i::2]
        shards |= dict.fromkeys(names, f"model-0000{i + 1}-of-00002.safetensors")
        (folder / shards[names[0]]).write_bytes(save({n: tensors[n] for n in names}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    settings = {"quant_method": "fp8", "weight_block_size": [2, 4], "config_groups": {"a": {"weights": {"bits": 8}}}}
    config = {"model_type": "bert", "tie_word_embeddings": True, "text_config": {}, "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, name, checkpoint_in_memory(bert_like())


def config_of_shards(folder):
    return sharded_folder(folder, "config.json")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_the_peak_of_a_case_is_seen():
    before = peak(reset=True)
    with mmap.mmap(-1, 64 * MIB) as held:  # of the system: what malloc is given back it may keep, after a long suite
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        during = peak()
    after = peak(reset=True)
    assert during - before > 60 * MIB and after - before < 30 * MIB


@pytest.mark.parametrize("make, mutate, cases", [
    (model_folder, mutated_safetensors, 600), (adapter_folder, mutated_safetensors, 500),
    (config_folder, mutated_config, 900), (pickled_folder, damage, 200), (sharded_folder, mutated_config, 200),
    (config_of_shards, mutated_config, 200),
])
def test_damaged_files_end_in_an_answer_or_one_line(tmp_path, make, mutate, cases):
    folder, name, base = make(tmp_path)
    whole = (folder / name).read_bytes()
    assert attempt(base, folder, random.Random(0)).what == "answer"
    seen, wrong = Counter(), []
    for i in range(cases):
        chance = random.Random(f"{name} {i}")
        content = mutate(chance, whole)
        (folder / name).write_bytes(content)
        of = attempt(base, folder, chance)
        seen[of.what] += 1
        one_line = of.message.isprintable() and len(of.message) < 1000
        if of.what not in ("answer", "error") or not one_line or of.seconds > SECONDS or of.grown > 500 * MIB:
            wrong.append((i, of))
    assert not wrong, wrong[:5]
    # Neither a mutation that is always seen nor one that never matters would test anything.
    assert seen["answer"] > 0.1 * cases and seen["error"] > 0.2 * cases, seen

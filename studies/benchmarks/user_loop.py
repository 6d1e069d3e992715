"""The rank sweep that a user writes today: transformers.Trainer and peft in a loop, with dynamic padding.

Called by sweep_loop.py, and readable on its own: no trick that the libraries' guides do not show, and none left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)


class Rows(torch.utils.data.Dataset):
    """Tokenised pairs with their labels."""

    def __init__(self, table: pd.DataFrame, tokenizer, max_length: int) -> None:
        self.rows = tokenizer(table["text"].tolist(), table["text_b"].tolist(), truncation=True, max_length=max_length)
        self.labels = table["label"].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        return {name: values[i] for name, values in self.rows.items()} | {"labels": self.labels[i]}


def accuracy(predicted) -> dict[str, float]:
    """For the Trainer."""
    return {"accuracy": float((np.argmax(predicted.predictions, axis=1) == predicted.label_ids).mean())}


@click.command()
@click.option("--model", required=True)
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="Folder of train.tsv and eval.tsv.")
@click.option("--ranks", required=True)
@click.option("--seeds", type=int, required=True)
@click.option("--lr", type=float, required=True)
@click.option("--epochs", type=int, required=True)
@click.option("--train-size", type=int, required=True)
@click.option("--eval-size", type=int, required=True)
@click.option("--max-length", type=int, required=True)
@click.option("--bf16/--no-bf16", default=False)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(model, rows, ranks, seeds, lr, epochs, train_size, eval_size, max_length, bf16, out) -> None:
    """Train each r with each seed and write accuracies."""
    read = {"sep": "\t", "keep_default_na": False, "quoting": 3}
    tables = {name: pd.read_csv(rows / f"{name}.tsv", **read) for name in ("train", "eval")}
    names = sorted(set(tables["train"]["label"]))
    for name, size in (("train", train_size), ("eval", eval_size)):
        tables[name] = tables[name].head(size).assign(label=lambda t: t["label"].map(names.index))
    tokenizer = AutoTokenizer.from_pretrained(model)
    train, evaluation = (Rows(tables[name], tokenizer, max_length) for name in ("train", "eval"))
    found = {}
    for r in map(int, ranks.split(",")):
        for seed in range(seeds):
            set_seed(seed)
            base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names))
            lora = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["query", "value"], task_type="SEQ_CLS")
            trainer = Trainer(
                model=get_peft_model(base, lora),
                args=TrainingArguments(
                    output_dir=str(out.parent / "trainer"),
                    per_device_train_batch_size=32,
                    per_device_eval_batch_size=64,
                    num_train_epochs=epochs,
                    learning_rate=lr,
                    weight_decay=0.01,
                    warmup_steps=0.06,
                    lr_scheduler_type="linear",
                    seed=seed,
                    bf16=bf16,
                    use_cpu=not torch.cuda.is_available(),
                    report_to=[],
                    save_strategy="no",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=train,
                eval_dataset=evaluation,
                data_collator=DataCollatorWithPadding(tokenizer),
                compute_metrics=accuracy,
            )
            trainer.train()
            found[f"r={r} seed={seed}"] = {
                "accuracy": trainer.evaluate()["eval_accuracy"], "steps": trainer.state.global_step
            }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Train a text classifier, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/classification/train.py recipes/classification/configs/finetune.yaml
    --task mrpc --model_name_or_path google-bert/bert-base-uncased --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

import difflib
import json
import logging
import os
import re
import shlex
import sys
import time
from itertools import chain
from math import prod
from pathlib import Path

import datasets
import evaluate
import tasks
import torch
import torch.nn.functional as F
from accelerate import PartialState
from arguments import CONFIGS, RecipeArguments
from grouping import SameBatches
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar
from wordpiece import train_wordpiece

import hf_nm
from hf_nm.metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearman
from hf_nm.predictions import write_predictions
from hf_nm.recipe_options import one_line_errors, parse
from hf_nm.results import environment, plot_sad, read_scores, sad_summary, write_results

STARTED = time.perf_counter()
METRICS = {metric.key: metric for metric in (Accuracy, F1, MatthewsCorrelation, Pearson, Spearman)}


def classification_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Cross-entropy in nats, or the squared error of a regression, per example of the whole update.

    Args:
        outputs: a model output with `logits` [batch, classes], or [batch, 1] for a regression.
        labels: [batch], class numbers or floats.
        num_items_in_batch: examples of the whole update, over accumulation and processes.
    """
    logits = outputs["logits"].float()
    if logits.shape[-1] == 1:
        total = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    else:
        total = F.cross_entropy(logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def score(names, predictions, references) -> dict[str, float]:
    """The task's metrics, each in its own unit."""
    combined = evaluate.combine([METRICS[name](keep_in_memory=True) for name in names])
    return combined.compute(predictions=predictions, references=references)


def read_config(option: str, name: str, **changes):
    """The config of a checkpoint, in a folder or on the Hub."""
    try:
        return AutoConfig.from_pretrained(name, **changes)
    except (OSError, ValueError) as error:
        where = "that folder" if Path(name).is_dir() else "no such folder, and not on the Hub"
        raise ValueError(f"--{option} {name}: {where}: {str(error).splitlines()[0]}") from error


def read_overrides(text: str | None) -> dict:
    """`hidden_size=128,hidden_act=relu`, or a JSON object, as a dict."""
    if text and text.lstrip().startswith("{"):
        return json.loads(text)
    found = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"--config_overrides: {part!r} must be name=value, as in hidden_size=128."
            )
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:  # a word
            found[name.strip()] = value.strip()
    return found


def load_model(recipe: RecipeArguments, data: tasks.Labelled, out: Path, resumed_from: str | None):
    """Tokenizer and model, from a checkpoint or, with `config_name`, from scratch."""
    source = recipe.model_name_or_path or recipe.config_name
    if bool(recipe.model_name_or_path) == bool(recipe.config_name):
        raise ValueError(
            "give either --model_name_or_path (a checkpoint) or --config_name (from scratch)."
        )
    head = {"num_labels": 1, "problem_type": "regression"}
    if data.labels is not None:
        head = {
            "id2label": dict(enumerate(data.labels)),
            "label2id": {label: i for i, label in enumerate(data.labels)},
            "problem_type": "single_label_classification",
        }
    if recipe.tokenizer_name or recipe.config_name not in CONFIG_MAPPING:
        tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer_name or source)
    elif resumed_from:
        tokenizer = AutoTokenizer.from_pretrained(resumed_from)
    elif PartialState().is_main_process:
        # One process learns the vocabulary, the others read it: all have the same numbers for sure.
        train = data.splits["train"]
        texts = chain.from_iterable(train[column] for column in data.texts)
        tokenizer = train_wordpiece(texts, recipe.vocab_size)
        tokenizer.model_max_length = recipe.max_length
        tokenizer.save_pretrained(out)
    else:
        tokenizer = AutoTokenizer.from_pretrained(out)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if recipe.config_name:
        changes = head | read_overrides(recipe.config_overrides)
        if recipe.config_name in CONFIG_MAPPING:
            config = AutoConfig.for_model(
                recipe.config_name, **{"vocab_size": len(tokenizer)} | changes
            )
        else:
            config = read_config("config_name", recipe.config_name, **changes)
        strange = [name for name in changes if not hasattr(type(config)(), name)]
        if strange:
            near = difflib.get_close_matches(strange[0], type(config)().to_dict(), n=1)
            raise ValueError(
                f"--config_overrides: {recipe.config_name} has no {strange[0]!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        config.pad_token_id = tokenizer.pad_token_id
        positions = getattr(config, "max_position_embeddings", None) or recipe.max_length
        if recipe.max_length > positions:
            raise ValueError(
                f"--max_length is {recipe.max_length}, but {recipe.config_name} has {positions} "
                "positions; lower it, or set max_position_embeddings in --config_overrides."
            )
        return tokenizer, AutoModelForSequenceClassification.from_config(config)
    was = read_config("model_name_or_path", source)
    if any("ForSequenceClassification" in name for name in was.architectures or []):
        had, has = list(map(str, was.id2label.values())), data.labels or ["a number"]
        unnamed = data.labels is None or all(re.fullmatch(r"LABEL_\d+", name) for name in had)
        alike = unnamed or {*map(str.casefold, had)} == {*map(str.casefold, has)}
        new_head = recipe.ignore_mismatched_sizes and len(had) != len(has)
        if not new_head and (len(had) != len(has) or not alike):
            raise ValueError(
                f"{source} is a classifier of {len(had)} labels ({', '.join(had)}), but "
                f"{recipe.task} has {len(has)} ({', '.join(has)}); start from the pretrained model, "
                "or name the labels alike (another number of them: --ignore_mismatched_sizes True "
                "makes a new head)."
            )
    model = AutoModelForSequenceClassification.from_pretrained(
        source, **head, ignore_mismatched_sizes=recipe.ignore_mismatched_sizes
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def updates_before(folder: str | None) -> int | None:
    """Updates of the run in this folder and of those it started from; None if it is no run."""
    path = Path(folder or "") / "results.json"
    if not folder or not path.is_file():
        return None
    run = json.loads(path.read_text("utf-8"))
    return run["steps"] + (run.get("steps_before") or 0)


def main() -> None:
    # accelerate's launcher does not pass on its use_cpu to several processes.
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with one_line_errors():
        recipe, arguments = parse(
            sys.argv[1:], (RecipeArguments, TrainingArguments), CONFIGS / "embedded.yaml"
        )
    out = Path(arguments.output_dir)
    device = arguments.device  # this starts the process group, with the training arguments' options
    state = PartialState()
    log = logging.getLogger("recipe")
    log.handlers = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    if arguments.disable_tqdm:
        datasets.disable_progress_bars()
        disable_progress_bar()
    set_seed(arguments.seed)

    # ---- Data, tokenizer, model, teacher: whatever is wrong with the input shows here
    with one_line_errors(), state.main_process_first():  # the others find a download finished
        resumed_from = arguments.resume_from_checkpoint
        if resumed_from in ("True", "true"):
            resumed_from = get_last_checkpoint(out) if out.is_dir() else None
            if resumed_from is None:
                raise ValueError(
                    f"nothing to resume: no checkpoint in {out}; leave out --resume_from_checkpoint."
                )
        known_labels = []
        if recipe.model_name_or_path:
            start = read_config("model_name_or_path", recipe.model_name_or_path)
            known_labels = list(start.id2label.values())
        data = tasks.load(
            recipe.task,
            {
                "train": recipe.train_file,
                "validation": recipe.validation_file,
                "test": recipe.test_file,
            },
            texts=recipe.text_columns,
            label=recipe.label_column,
            metrics=recipe.metrics,
            regression=recipe.regression,
            validation_rows=recipe.validation_rows,
            known_labels=known_labels,
        )
        tokenizer, model = load_model(recipe, data, out, resumed_from)
        options = recipe.trainer_options(AutoModelForSequenceClassification, model, tokenizer)

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        return tokenizer(
            *(rows[column] for column in data.texts),
            truncation=True,
            max_length=recipe.max_length,
            return_length=True,
        )

    tokens = data.splits.map(tokenize, batched=True, remove_columns=data.texts)
    tokens = tokens.rename_column("label", "labels")
    for split in tokens:
        cut = sum(length >= recipe.max_length for length in tokens[split]["length"])
        log.info(
            f"{split}: {len(tokens[split]):,} rows, {cut} of {recipe.max_length} tokens or cut"
        )

    # ---- Training
    recipe.sparsify(model)

    def compute_metrics(prediction) -> dict[str, float]:
        logits = prediction.predictions
        guesses = logits[:, 0] if data.labels is None else logits.argmax(-1)
        return score(data.task.metrics, guesses, prediction.label_ids)

    arguments.label_names = [
        "labels"
    ]  # the loss function takes them, whatever the model's signature

    class RecipeTrainer(SameBatches, hf_nm.NMTrainer if recipe.sparse else Trainer):
        pass

    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=classification_loss,
        compute_metrics=compute_metrics,
        **options,
    )
    training_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resumed_from)
    train_seconds = time.perf_counter() - training_started
    validation = trainer.evaluate()
    # In mixed precision training has wrapped the forward.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    trainer.save_model(out)
    trainer.save_state()  # trainer_state.json: everything that was logged
    state.wait_for_everyone()

    # ---- Score: the saved checkpoint, opened as anybody would open it
    classify = pipeline("text-classification", model=str(out), device=device)
    probe = DataCollatorWithPadding(tokenizer)(
        [
            {k: row[k] for k in row if k not in ("labels", "length")}
            for row in tokens["test"].take(4)
        ]
    ).to(device)
    with torch.inference_mode():
        same_logits = torch.equal(
            model.eval()(**probe).logits, classify.model.eval()(**probe).logits
        )
    rows = data.splits["test"]
    inputs = (
        [{"text": a, "text_pair": b} for a, b in zip(rows["first"], rows["second"], strict=True)]
        if len(data.texts) == 2
        else list(rows["first"])
    )
    found = classify(
        inputs,
        batch_size=arguments.per_device_eval_batch_size,
        truncation=True,
        max_length=recipe.max_length,
        **({"function_to_apply": "none"} if data.labels is None else {}),
    )
    references = list(rows["label"])
    predictions = [
        row["score"] if data.labels is None else classify.model.config.label2id[row["label"]]
        for row in found
    ]
    scores = score(data.task.metrics, predictions, references)
    mean = sum(scores.values()) / len(scores)
    log.info(f"test: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}")

    if state.is_main_process:
        sparse_rows = hf_nm.verify(out).layers if recipe.sparse else []
        launcher = (
            ["accelerate", "launch"]
            if "ACCELERATE_MIXED_PRECISION" in os.environ
            else [Path(sys.executable).name]
        )
        scored = Path(recipe.test_file).name if recipe.test_file else data.task.test
        results = {
            "recipe": "classification",
            "task": recipe.task,
            "data": f"{recipe.task} ({scored})",
            "arm": recipe.arm or str(recipe),
            "method": recipe.method,
            "pattern": recipe.pattern,
            "decay": recipe.decay if recipe.method == "sr-ste" else None,
            "score": {
                "metric": " and ".join(data.task.metrics),
                "test": mean,
                "metrics": scores,
                "signature": f"{recipe.task}|{scored}|rows:{len(references)}"
                f"|max_length:{recipe.max_length}",
            },
            "metrics": list(data.task.metrics),
            "validation": {
                name.removeprefix("eval_"): value
                for name, value in validation.items()
                if name in ("eval_loss", *(f"eval_{metric}" for metric in data.task.metrics))
            },
            "model": {
                "start": recipe.model_name_or_path or f"{recipe.config_name}, from scratch",
                "type": model.config.model_type,
                "parameters": classify.model.num_parameters(),
                "nm_weights": sum(prod(row.shape) for row in sparse_rows),
                "nm_weights_kept": sum(row.kept for row in sparse_rows),
            },
            "sad": sad_summary(trainer.state.log_history) if recipe.sparse else None,
            "steps": trainer.state.global_step,
            "steps_before": updates_before(recipe.model_name_or_path),
            "teacher_steps": updates_before(recipe.teacher),
            "epochs": trainer.state.epoch,
            "batch": trainer.get_total_train_batch_size(arguments),
            "rows": {split: len(tokens[split]) for split in tokens},
            "time": {"train_s": train_seconds, "total_s": time.perf_counter() - STARTED},
            "reloaded_logits_equal": same_logits,
            "seed": arguments.seed,
            "command": shlex.join([*launcher, *sys.argv]),
            **environment(state.num_processes),
        }
        print(write_results(results, out, f"{recipe.task}, {results['arm']}"))
        write_predictions(out, references, predictions)
        plot_sad(trainer.state.log_history, out / "sad.png", f"{recipe.task}, {results['arm']}")
        if recipe.sparse:
            trainer.create_model_card(scores=read_scores(out, recipe.dense_run))
    # The others wait: the launcher would stop the first when a second one is gone.
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()

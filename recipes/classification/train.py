"""Train a text classifier, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/classification/train.py recipes/classification/configs/finetune.yaml
    --task mrpc --model_name_or_path google-bert/bert-base-uncased --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

import logging
import os
import shlex
import sys
import time
from functools import partial
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
from start import known_labels, load_start
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerState,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

import hf_nm
from hf_nm.environment import environment
from hf_nm.experiments.metrics import F1, Accuracy, MatthewsCorrelation, Pearson, Spearman
from hf_nm.experiments.options import one_line_errors, parse
from hf_nm.experiments.predictions import write_predictions
from hf_nm.experiments.results import write_results
from hf_nm.hub.figures import plot_sad
from hf_nm.hub.scores import read_run, read_scores
from hf_nm.optim.sad_log import sad_summary

STARTED = time.perf_counter()
METRICS = {metric.key: metric for metric in (Accuracy, F1, MatthewsCorrelation, Pearson, Spearman)}


def classification_loss(
    outputs, labels, num_items_in_batch=None, *, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats, or the squared error of a regression, per example of the whole update.

    Args:
        outputs: a model output with `logits` [batch, classes], or [batch, 1] for a regression.
        labels: [batch], class numbers or floats.
        num_items_in_batch: examples of the whole update, over accumulation and processes.
        smoothing: the share of a target that is spread over all classes.
    """
    logits = outputs["logits"].float()
    if logits.shape[-1] == 1:
        total = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    else:
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def score(names, predictions, references) -> dict[str, float]:
    """The task's metrics, each in its own unit."""
    combined = evaluate.combine([METRICS[name](keep_in_memory=True) for name in names])
    return combined.compute(predictions=predictions, references=references)


def updates_before(folder: str | None) -> int | None:
    """Updates of the run in this folder and of those it started from; None if it is no run."""
    try:
        run = read_run(Path(folder or "") / "results.json")
    except (FileNotFoundError, ValueError):
        return None
    return run["steps"] + (run.get("steps_before") or 0)


def last_step(arguments: TrainingArguments) -> tuple[str | None, int]:
    """The checkpoint to resume from and its step; None and 0 for a new run."""
    given = arguments.resume_from_checkpoint
    if not given:
        return None, 0
    out = Path(arguments.output_dir)
    latest = given in ("True", "true")
    folder = (get_last_checkpoint(out) if out.is_dir() else None) if latest else given
    if folder is None or not Path(folder, TRAINER_STATE_NAME).is_file():
        raise ValueError(
            f"nothing to resume: no checkpoint in {out if latest else given}; leave out "
            "--resume_from_checkpoint."
        )
    state = TrainerState.load_from_json(Path(folder, TRAINER_STATE_NAME))
    return str(folder), state.global_step


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
    files = {
        "train": recipe.train_file,
        "validation": recipe.validation_file,
        "test": recipe.test_file,
    }
    if any(files.values()) and recipe.task == "embedded":
        recipe.task = "local"
    with one_line_errors(), state.main_process_first():  # the others find a download finished
        resumed_from, resumed_step = last_step(arguments)
        data = tasks.load(
            recipe.task,
            files,
            texts=recipe.text_columns,
            label=recipe.label_column,
            metrics=recipe.metrics,
            positive=recipe.positive_label,
            regression=recipe.regression,
            validation_rows=recipe.validation_rows,
            known_labels=known_labels(recipe),
        )
        tokenizer, model = load_start(recipe, data, out, resumed_from)
        options = recipe.trainer_options(AutoModelForSequenceClassification, model, tokenizer)
        recipe.sparsify(model)
        scored_on = Path(recipe.test_file).name if recipe.test_file else data.task.test
        signature = f"{recipe.task}|{scored_on}|rows:{len(data.splits['test'])}"
        signature += f"|max_length:{recipe.max_length}"
        if recipe.dense_run:
            dense = read_run(Path(recipe.dense_run) / "results.json")
            if (dense["method"], dense["score"]["signature"]) != ("dense", signature):
                raise ValueError(
                    f"--dense_run {recipe.dense_run}: a {dense['method']} run scored as "
                    f"{dense['score']['signature']}, but this one needs a dense one scored as "
                    f"{signature}."
                )

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        return tokenizer(
            *(rows[column] for column in data.texts),
            truncation=True,
            max_length=recipe.max_length,
            return_length=True,
        )

    tokens = data.splits.map(tokenize, batched=True, remove_columns=data.texts)
    tokens = tokens.rename_column("label", "labels")
    for split, rows in tokens.items():
        cut = sum(length >= recipe.max_length for length in rows["length"])
        log.info(f"{split}: {len(rows):,} rows, {cut} of {recipe.max_length} tokens or cut")

    # ---- Training
    def as_scored(numbers) -> list:
        """The model's class numbers as the scores count them; numbers of a regression as they are."""
        return list(numbers) if data.labels is None else [data.scored[i] for i in numbers]

    def compute_metrics(prediction) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits  # BART gives states beside them
        guesses = logits[:, 0] if data.labels is None else logits.argmax(-1)
        return score(data.task.metrics, as_scored(guesses), as_scored(prediction.label_ids))

    class RecipeTrainer(SameBatches, hf_nm.NMTrainer if recipe.sparse else Trainer):
        pass

    arguments.label_names = ["labels"]  # for the loss function, whatever the model's signature says
    smoothing = arguments.label_smoothing_factor
    with one_line_errors():
        trainer = RecipeTrainer(
            model=model,
            args=arguments,
            train_dataset=tokens["train"],
            eval_dataset=tokens["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_loss_func=partial(classification_loss, smoothing=smoothing),
            compute_metrics=compute_metrics,
            **options,
        )
    training_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resumed_from)
    train_seconds = time.perf_counter() - training_started
    validation = trainer.evaluate()
    # In mixed precision training has wrapped the forward.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    trainer.save_model(out, _internal_call=True)  # pushed below, with its score
    trainer.save_state()  # trainer_state.json: everything that was logged

    # ---- Score: the saved checkpoint, opened as anybody would open it
    if state.is_main_process:
        classify = pipeline("text-classification", model=str(out), device=device)
        probe = tokens["test"].remove_columns(["labels", "length"]).take(4).to_list()
        probe = DataCollatorWithPadding(tokenizer)(probe).to(device)
        with torch.inference_mode():
            same_logits = torch.equal(
                model.eval()(**probe).logits, classify.model.eval()(**probe).logits
            )
        test = data.splits["test"]
        inputs = [
            dict(zip(("text", "text_pair"), texts, strict=False))
            for texts in zip(*(test[column] for column in data.texts), strict=True)
        ]
        found = classify(
            inputs,
            batch_size=arguments.per_device_eval_batch_size,
            truncation=True,
            max_length=recipe.max_length,
            function_to_apply="none" if data.labels is None else "softmax",
        )
        number = classify.model.config.label2id
        guesses = [row["score"] if data.labels is None else number[row["label"]] for row in found]
        predictions, references = as_scored(guesses), as_scored(test["label"])
        scores = score(data.task.metrics, predictions, references)
        log.info(f"test: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}")

        sparse_rows = hf_nm.verify(out).layers if recipe.sparse else []
        launcher = (
            ["accelerate", "launch"]
            if "ACCELERATE_MIXED_PRECISION" in os.environ
            else [Path(sys.executable).name]
        )
        results = {
            "recipe": "classification",
            "task": recipe.task,
            "data": f"{recipe.task} ({scored_on})",
            "arm": recipe.arm or str(recipe),
            "method": recipe.method,
            "pattern": recipe.pattern,
            "decay": recipe.decay if recipe.method == "sr-ste" else None,
            "score": {
                "metric": " and ".join(data.task.metrics),
                "test": sum(scores.values()) / len(scores),
                "metrics": scores,
                "signature": signature,
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
            "rows": {split: len(rows) for split, rows in tokens.items()},
            "time": {
                "train_s": train_seconds,
                "steps": trainer.state.global_step - resumed_step,
                "total_s": time.perf_counter() - STARTED,
            },
            "reloaded_logits_equal": same_logits,
            "seed": arguments.seed,
            "command": shlex.join([*launcher, *sys.argv]),
            **environment(state.num_processes),
        }
        title = f"{recipe.task}, {results['arm']}"
        print(write_results(results, out, title))
        write_predictions(out, references, predictions)
        unit = "squared error" if data.labels is None else "nats"
        plot_sad(trainer.state.log_history, out / "sad.png", title, loss_unit=unit)
    state.wait_for_everyone()
    card = {"scores": read_scores(out, recipe.dense_run)} if recipe.sparse else {}
    if arguments.push_to_hub:
        trainer.push_to_hub(**card)
    elif recipe.sparse:
        trainer.create_model_card(**card)
    # The others wait: the launcher would stop the first when a second one is gone.
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()

"""Train a text classifier, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/classification/train.py recipes/classification/configs/finetune.yaml
    --task mrpc --model_name_or_path google-bert/bert-base-uncased --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

from functools import partial
from pathlib import Path
from typing import Any

from batching import SameBatches
from data import load_data
from model import known_labels, load_model
from objective import classification_loss
from options import parse
from scoring import answers, as_scored, score
from tokenizer import load_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    pipeline,
)

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.options import one_line_errors, one_line_without_room
from hf_nm.experiments.results import write_predictions
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("classification", parse)

    # ---- Data, tokenizer, model, teacher: whatever is wrong with the input shows here
    files = {
        "train": recipe.train_file,
        "validation": recipe.validation_file,
        "test": recipe.test_file,
    }
    if any(files.values()) and recipe.task == "embedded":
        recipe.task = "local"
    with one_line_errors(), run.state.main_process_first():  # the others find a download finished
        data = load_data(
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
        tokenizer = load_tokenizer(recipe, data, run)
        model = load_model(recipe, data, tokenizer)
        options = recipe.trainer_options(AutoModelForSequenceClassification, model, tokenizer)
        recipe.sparsify(model)
        scored_on = Path(recipe.test_file).name if recipe.test_file else data.task.test
        signature = f"{recipe.task}|{scored_on}|rows:{len(data.splits['test'])}"
        signature += f"|max_length:{recipe.max_length}"
        check_dense_run(recipe.dense_run, signature)

    def tokenize(rows: dict[str, list]) -> Any:
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
        run.log.info(f"{split}: {len(rows):,} rows, {cut} of {recipe.max_length} tokens or cut")

    # ---- Training
    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits  # BART gives states beside them
        guesses = logits[:, 0] if data.labels is None else logits.argmax(-1)
        return score(
            data.task.metrics, as_scored(data, guesses), as_scored(data, prediction.label_ids)
        )

    kind: Any = hf_nm.NMTrainer if recipe.sparse else Trainer

    class RecipeTrainer(SameBatches, kind):
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
    run.train(trainer)
    validation = trainer.evaluate()
    trained = run.save(trainer)

    # ---- Score: the saved checkpoint, opened as anybody would open it
    if run.state.is_main_process:
        classify = pipeline("text-classification", model=str(run.out), device=run.device)
        probe = tokens["test"].remove_columns(["labels", "length"]).take(4).to_list()
        padded: Any = DataCollatorWithPadding(tokenizer)(probe)
        equal = same_outputs(trained, classify.model, padded.to(run.device))
        batch_size = arguments.per_device_eval_batch_size
        guesses = answers(classify, data, batch_size, recipe.max_length)
        predictions = as_scored(data, guesses)
        references = as_scored(data, data.splits["test"]["label"])
        scores = score(data.task.metrics, predictions, references)
        run.log.info(f"test: {' '.join(f'{name} {value:.4f}' for name, value in scores.items())}")
        arm = recipe.arm or str(recipe)
        results = run.results(
            trainer,
            classify.model,
            data=f"{recipe.task} ({scored_on})",
            score={
                "metric": " and ".join(data.task.metrics),
                "test": sum(scores.values()) / len(scores),
                "metrics": scores,
                "signature": signature,
            },
            reloaded_equal=equal,
            model={
                "start": recipe.model_name_or_path or f"{recipe.config_name}, from scratch",
                "type": classify.model.config.model_type,
            },
            task=recipe.task,
            arm=arm,
            metrics=list(data.task.metrics),
            validation={
                name.removeprefix("eval_"): value
                for name, value in validation.items()
                if name in ("eval_loss", *(f"eval_{metric}" for metric in data.task.metrics))
            },
            steps_before=updates_before(recipe.model_name_or_path),
            teacher_steps=updates_before(recipe.teacher),
            batch=trainer.get_total_train_batch_size(arguments),
            rows={split: len(rows) for split, rows in tokens.items()},
        )
        unit = "squared error" if data.labels is None else "nats"
        write_predictions(run.out, references, predictions)  # a run with results has everything
        run.write(results, f"{recipe.task}, {arm}", trainer, unit, recipe.dense_run)
    run.publish(trainer, recipe.dense_run)
    run.close()


if __name__ == "__main__":
    main()

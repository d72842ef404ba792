"""Train an image classifier, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/vision/classify.py recipes/vision/configs/cifar_resnet20.yaml
    --dataset_name uoft-cs/cifar10 --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

from functools import partial
from typing import Any

import torch
from augmentation import Augmentation
from batches import NextEpoch, Pixels, Stack
from images import Scaled, one_line_image_errors
from labelled import load_images
from model import check_teacher, known_labels, load_model, load_processor
from objective import classification_loss
from options import parse
from scoring import answers
from sources import SPLITS
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, pipeline

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.metrics import Accuracy
from hf_nm.experiments.options import one_line_errors
from hf_nm.experiments.output import one_line_without_room
from hf_nm.experiments.results import write_predictions
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("image-classification", parse)
    quiet = arguments.disable_tqdm or not run.state.is_main_process

    # ---- Data, processor, model, teacher: whatever is wrong with the input shows here
    with one_line_errors(), run.state.main_process_first():  # the others find a download finished
        hub = (recipe.dataset_name, recipe.dataset_config_name) if recipe.dataset_name else None
        data = load_images(
            recipe.data,
            hub,
            task=recipe.task,
            image=recipe.image_column,
            label=recipe.label_column,
            test_split=recipe.test_split,
            validation_rows=recipe.validation_rows,
            known_labels=known_labels(recipe),
        )
        processor: Any = run.made_once(
            AutoImageProcessor, lambda: load_processor(recipe, data.splits["train"])
        )
        scaled = Scaled(processor)
        model = load_model(recipe, data)
        check_teacher(recipe.teacher, scaled, data.labels)
        options = recipe.trainer_options(AutoModelForImageClassification, model, None)
        recipe.sparsify(model)
        signature = f"{data.task}|{data.test}|rows:{len(data.splits['test'])}"
        signature += f"|size:{scaled.size[0]}x{scaled.size[1]}"
        check_dense_run(recipe.dense_run, signature)

    vary = Augmentation(
        arguments.seed if arguments.data_seed is None else arguments.data_seed,
        recipe.crop_padding,
        recipe.flip,
        recipe.min_crop_area,
    )
    images = {
        split: Pixels(
            data.splits[split], data.numbers(split), scaled, vary if split == "train" else None
        )
        for split in SPLITS
    }
    for split, pixels in images.items():
        run.log.info(f"{split}: {len(pixels):,} images of {len(data.labels)} classes")
        if sum(each.gibibytes for each in images.values()) <= recipe.image_memory:
            with one_line_errors():
                pixels.hold(f"opening {split} images", quiet)
    if recipe.sparse:
        table = hf_nm.report(model)
        run.log.info(str(table).splitlines()[-1])
        for row in table.skipped:
            if "not a multiple" in row.reason:
                run.log.info(f"stays dense: {row.name} {list(row.shape)}: {row.reason}")

    # ---- Training
    accuracy = Accuracy(keep_in_memory=True)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits  # some give states beside them
        return accuracy.compute(predictions=logits.argmax(-1), references=prediction.label_ids)

    kind: Any = hf_nm.NMTrainer if recipe.sparse else Trainer
    arguments.label_names = ["labels"]  # for the loss function, whatever the model's signature says
    arguments.remove_unused_columns = False
    with one_line_errors():
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=images["train"],
            eval_dataset=images["validation"],
            processing_class=processor,
            data_collator=Stack(scaled),
            compute_loss_func=partial(
                classification_loss, smoothing=arguments.label_smoothing_factor
            ),
            compute_metrics=compute_metrics,
            callbacks=[NextEpoch(images["train"])],
            **recipe.optimizer(arguments),
            **options,
        )
    with one_line_image_errors():
        run.train(trainer)
        validation = trainer.evaluate()
    trained = run.save(trainer)

    # ---- Score: the saved checkpoint, opened as anybody would open it
    if run.state.is_main_process:
        own_code = (
            getattr(trained, "_auto_class", None) is not None
        )  # cifar_resnet.py lies beside it
        classify: Any = pipeline(
            "image-classification",
            model=str(run.out),
            device=run.device,
            trust_remote_code=own_code,
        )
        if recipe.channels_last:  # another layout may round otherwise
            classify.model.to(memory_format=torch.channels_last)
        probe = Stack(scaled)([images["test"][i] for i in range(min(4, len(images["test"])))])
        seen = {"pixel_values": probe["pixel_values"].to(run.device)}
        equal = same_outputs(trained, classify.model, seen)
        with one_line_image_errors():
            predictions = answers(
                classify, data.splits["test"], arguments.per_device_eval_batch_size, quiet
            )
        references = data.numbers("test").tolist()
        scores = accuracy.compute(predictions=predictions, references=references)
        run.log.info(f"test: accuracy {scores['accuracy']:.4f}")
        arm = recipe.arm or str(recipe)
        results = run.results(
            trainer,
            classify.model,
            data=f"{data.task} ({data.test})",
            score={
                "metric": "accuracy",
                "test": scores["accuracy"],
                "metrics": scores,
                "signature": signature,
            },
            reloaded_equal=equal,
            model={
                "start": recipe.model_name_or_path or f"{recipe.config_name}, from scratch",
                "type": classify.model.config.model_type,
            },
            task=data.task,
            arm=arm,
            metrics=["accuracy"],
            validation={
                name.removeprefix("eval_"): validation[name]
                for name in ("eval_loss", "eval_accuracy")
            },
            steps_before=updates_before(recipe.model_name_or_path),
            teacher_steps=updates_before(recipe.teacher),
            batch=trainer.get_total_train_batch_size(arguments),
            rows={split: len(pixels) for split, pixels in images.items()},
        )
        write_predictions(run.out, references, predictions)  # a run with results has everything
        run.write(results, f"{data.task}, {arm}", trainer, "nats")
    run.publish(trainer, recipe.dense_run)
    run.close()


if __name__ == "__main__":
    main()

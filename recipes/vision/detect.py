"""Train an object detector, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/vision/detect.py recipes/vision/configs/detect_small.yaml
    --dataset_name cppe-5 --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

from typing import Any

import torch
from annotated import load_annotated
from augmentation import Augmentation
from batches import NextEpoch
from detection_batches import BoxedPixels, StackBoxed
from detection_model import WholeImages, load_model, load_processor, sparsify
from detection_options import parse
from detection_scoring import detections, draw_samples, mean_average_precision, signature
from images import one_line_image_errors
from model import known_labels
from sources import SPLITS
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.options import one_line_errors
from hf_nm.experiments.output import one_line_without_room, write_json
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("object-detection", parse)
    quiet = arguments.disable_tqdm or not run.state.is_main_process

    # ---- Data, processor, model: whatever is wrong with the input shows here
    with one_line_errors(), run.state.main_process_first():  # the others find a download finished
        hub = (recipe.dataset_name, recipe.dataset_config_name) if recipe.dataset_name else None
        data = load_annotated(
            recipe.data,
            hub,
            folders=recipe.image_folders,
            task=recipe.task,
            image=recipe.image_column,
            objects=recipe.objects_column,
            test_split=recipe.test_split,
            validation_rows=recipe.validation_rows,
            known_labels=known_labels(recipe),
        )
        processor: Any = run.made_once(
            AutoImageProcessor, lambda: load_processor(recipe, data.splits["train"])
        )
        scaled = WholeImages(processor)
        model = load_model(recipe, data)
        options = recipe.trainer_options(AutoModelForObjectDetection, model, None)
        sparsify(recipe, model)
        signed = signature(data.task, data.test, len(data.splits["test"]))
        check_dense_run(recipe.dense_run, signed)

    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    vary = Augmentation(seed, flip=recipe.flip)
    images: dict[str, Any] = {
        split: BoxedPixels(data.splits[split], data.labels, scaled)
        if split != "train"
        else BoxedPixels(data.splits[split], data.labels, scaled, vary, recipe.flip_vertically)
        for split in SPLITS
    }
    for split, rows in data.splits.items():
        boxes = sum(map(len, rows.boxes))
        empty = sum(not len(each) for each in rows.boxes)
        run.log.info(
            f"{split}: {len(rows):,} images ({empty:,} empty), {boxes:,} boxes of {len(data.labels)} "
            "classes"
        )
        if rows.clipped or rows.dropped:
            run.log.info(
                f"{split}: {rows.clipped:,} boxes reached out of their image and were clipped, "
                f"{rows.dropped:,} lay outside and were left out"
            )
        if sum(each.gibibytes for each in images.values()) <= recipe.image_memory:
            with one_line_errors():
                images[split].hold(f"opening {split} images", quiet)
    if recipe.sparse:
        run.log.info(str(hf_nm.report(model)).splitlines()[-1])

    # ---- Training: the model's own loss, a matching of its queries with the boxes
    kind: Any = hf_nm.NMTrainer if recipe.sparse else Trainer
    arguments.label_names = ["labels"]
    arguments.remove_unused_columns = False
    arguments.prediction_loss_only = True  # images have different numbers of boxes
    stack = StackBoxed(scaled, model)
    with one_line_errors():
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=images["train"],
            eval_dataset=images["validation"],
            processing_class=processor,
            data_collator=stack,
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
        reloaded: Any = AutoModelForObjectDetection.from_pretrained(run.out)
        reloaded.to(run.device).eval()
        if recipe.channels_last:  # another layout may round otherwise
            reloaded.to(memory_format=torch.channels_last)
        opened: Any = AutoImageProcessor.from_pretrained(run.out)
        probe = stack([images["test"][i] for i in range(min(4, len(images["test"])))])
        seen = {key: value.to(run.device) for key, value in probe.items() if key != "labels"}
        equal = same_outputs(trained, reloaded, seen, names=("logits", "pred_boxes"))
        scores, found = {}, []
        for split in ("validation", "test"):
            with one_line_image_errors():
                found = detections(
                    reloaded, opened, images[split], arguments.per_device_eval_batch_size, quiet
                )
            scores[split] = mean_average_precision(data.splits[split], data.labels, found)
        whole = scores["test"]
        run.log.info(f"test: mAP {whole['mAP']:.4f}, mAP@50 {whole['mAP@50']:.4f}")
        arm = recipe.arm or str(recipe)
        results = run.results(
            trainer,
            reloaded,
            data=f"{data.task} ({data.test})",
            score={
                "metric": "mAP",
                "validation": scores["validation"].get("mAP"),
                "test": whole["mAP"],
                "metrics": whole,
                "signature": signed,
            },
            reloaded_equal=equal,
            model={
                "start": recipe.model_name_or_path or f"{recipe.config_name}, from scratch",
                "type": reloaded.config.model_type,
            },
            task=data.task,
            arm=arm,
            metrics=["mAP", "mAP@50"],
            validation={"loss": validation["eval_loss"], **scores["validation"]},
            steps_before=updates_before(recipe.model_name_or_path),
            batch=trainer.get_total_train_batch_size(arguments),
            rows={split: len(rows) for split, rows in data.splits.items()},
        )
        kept = {"labels": data.labels, "images": data.splits["test"].names}
        each = [{key: value.tolist() for key, value in image.items()} for image in found]
        write_json(run.out / "detections.json", {**kept, "found": each})
        if recipe.drawn_images:
            samples = run.out / "samples.png"
            rows = data.splits["test"]
            draw_samples(samples, rows, data.labels, found, recipe.drawn_images, recipe.drawn_from)
        run.write(results, f"{data.task}, {arm}", trainer, "the model's")
    run.publish(trainer, recipe.dense_run)
    run.close()


if __name__ == "__main__":
    main()

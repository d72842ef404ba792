"""Train a model of optical flow, dense or N:M sparse, from a checkpoint or from scratch, and score it.

    accelerate launch recipes/vision/flow.py recipes/vision/configs/flow_quick.yaml
    --train_data FlyingChairs/train --test_data FlyingChairs/test --method sr-ste

A YAML file first, then command-line options that override it. Every option of `TrainingArguments`
is one too.
"""

from functools import partial
from typing import Any

import numpy as np
from batches import NextEpoch
from flow_batches import Crops, stack
from flow_data import load_pairs
from flow_model import load_model
from flow_options import parse
from flow_picture import draw_flows
from flow_scoring import end_point_loss, mean_flow, predict, score
from images import one_line_image_errors
from sources import SPLITS
from transformers import PerceiverForOpticalFlow, Trainer

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.options import one_line_errors
from hf_nm.experiments.output import one_line_without_room
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("optical-flow", parse)
    quiet = arguments.disable_tqdm or not run.state.is_main_process

    # ---- Data and model: whatever is wrong with the input shows here
    with one_line_errors(), run.state.main_process_first():
        data = load_pairs(
            recipe.data,
            task=recipe.task,
            render=recipe.sintel_pass,
            validation_rows=recipe.validation_rows,
        )
        model = load_model(recipe)
        recipe.sparsify(model)
        options = recipe.trainer_options(PerceiverForOpticalFlow, model, None)
        signature = f"{data.task}|{data.test}|pairs:{len(data.splits['test'])}|every known pixel"
        check_dense_run(recipe.dense_run, signature)
    scale = float(model.config.flow_scale)
    height, width = model.config.train_size
    size = (int(height), int(width))

    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    crops = {
        split: Crops(data.splits[split], size, seed if split == "train" else None)
        for split in SPLITS
    }
    with one_line_errors():
        for split, pairs in crops.items():
            run.log.info(f"{split}: {len(pairs):,} pairs, seen as {size[1]} x {size[0]}")
            pairs.hold(f"opening {split} pairs", quiet)
    if recipe.sparse:
        table = hf_nm.report(model)
        run.log.info(str(table).splitlines()[-1])
        for row in table.skipped:
            if "not a multiple" in row.reason:
                run.log.info(f"stays dense: {row.name} {list(row.shape)}: {row.reason}")

    # ---- Training
    kind: Any = hf_nm.NMTrainer if recipe.sparse else Trainer
    arguments.label_names = ["labels"]  # the model itself takes none
    arguments.remove_unused_columns = False
    training: Any = crops["train"]
    with one_line_errors():
        trainer = kind(
            model=model,
            args=arguments,
            train_dataset=training,
            eval_dataset=crops["validation"],
            data_collator=stack,
            compute_loss_func=partial(end_point_loss, scale=scale),
            callbacks=[NextEpoch(training)],
            **recipe.optimizer(arguments),
            **options,
        )
    with one_line_image_errors():
        run.train(trainer)
        validation = trainer.evaluate()
    trained = run.save(trainer)

    # ---- Score: the saved checkpoint, opened as anybody would open it
    if run.state.is_main_process:
        reloaded: Any = PerceiverForOpticalFlow.from_pretrained(run.out)
        reloaded.to(run.device)
        test = data.splits["test"]
        probe = stack([crops["test"][i] for i in range(min(2, len(test)))])
        equal = same_outputs(trained, reloaded, {"inputs": probe["inputs"].to(run.device)})
        whole: dict[str, Any] = {
            "size": size,
            "scale": scale,
            "batch_size": arguments.per_device_eval_batch_size,
        }
        with one_line_image_errors():
            constants = {"zero": np.zeros(2), "mean": mean_flow(data.splits["train"], quiet)}
            scores = score(reloaded, test, constants, quiet=quiet, **whole)
            opened = [test.open(i) for i in range(min(recipe.shown_pairs, len(test)))]
        shown = [(pair[0], pair[2], predict(reloaded, *pair[:2], **whole)) for pair in opened]
        run.log.info(
            f"test: end-point error {scores['epe']:.3f} px, predicting zero {scores['epe_zero']:.3f}, "
            f"the mean flow {scores['epe_mean']:.3f}; above 3 px: {scores['outliers']:.2%} of pixels"
        )
        arm = recipe.arm or str(recipe)
        results = run.results(
            trainer,
            reloaded,
            data=f"{data.task} ({data.test})",
            score={
                "metric": "end-point error",
                "test": scores["epe"],
                "higher_is_better": False,
                "metrics": scores,
                "signature": signature,
            },
            reloaded_equal=equal,
            model={
                "start": recipe.model_name_or_path or f"{recipe.config_name}, from scratch",
                "type": reloaded.config.model_type,
                "train_size": list(size),
                "flow_scale": scale,
            },
            task=data.task,
            arm=arm,
            validation={"epe_of_middle": validation["eval_loss"]},
            steps_before=updates_before(recipe.model_name_or_path),
            batch=trainer.get_total_train_batch_size(arguments),
            rows={split: len(pairs) for split, pairs in crops.items()},
        )
        draw_flows(run.out / "flow.png", shown)
        run.write(results, f"{data.task}, {arm}", trainer, "pixels")
    run.publish(trainer, recipe.dense_run)
    run.close()


if __name__ == "__main__":
    main()

"""Train a Transformer to translate, dense or N:M sparse from scratch, and score it with BLEU.

    accelerate launch recipes/translation/train.py recipes/translation/configs/embedded.yaml
    --method sr-ste

A YAML file first, then command-line options that override it. Every option of
`Seq2SeqTrainingArguments` is one too.
"""

from functools import partial
from typing import Any

import torch
from averaging import average_checkpoints
from batching import Collator
from data import load_data
from model import build_model
from objective import TokenBatches, label_smoothed_loss
from options import parse
from preparing import cleaned, joint_vocabulary, token_numbers
from scoring import dictionary_baseline, score, signature
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.options import one_line_errors, opened
from hf_nm.experiments.output import one_line_without_room
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("translation", parse)

    # ---- Data: sentences, then token numbers, prepared once (the others find it done)
    columns = (recipe.source_column, recipe.target_column)
    with one_line_errors(), run.state.main_process_first():
        splits = load_data(recipe)
    with one_line_errors(), run.state.main_process_first():
        tokenizer = run.made_once(
            AutoTokenizer,
            lambda: (
                opened(AutoTokenizer, "model_name_or_path", recipe.model_name_or_path)
                if recipe.model_name_or_path
                else joint_vocabulary(splits["train"], recipe.vocab_size)
            ),
        )
    rows, left_out = {}, {}
    rules = {"max_ratio": recipe.max_ratio, "drop_duplicates": recipe.drop_duplicates}
    for split, others in {"train": rules, "validation": {}}.items():
        with run.state.main_process_first():
            tokens = token_numbers(splits[split], tokenizer, columns, split)
        rows[split], left_out[split] = cleaned(tokens, max_length=recipe.max_length, **others)
        said = ", ".join(f"{count:,} {reason}" for reason, count in left_out[split].items())
        run.log.info(f"{split}: {len(rows[split]):,} pairs; left out: {said}")

    # ---- Model
    with one_line_errors():
        model = build_model(recipe, tokenizer)
        options = recipe.trainer_options(AutoModelForSeq2SeqLM, model, tokenizer)
        recipe.sparsify(model)
        check_dense_run(recipe.dense_run, signature(recipe.target_column))

    # ---- Training
    kind: Any = hf_nm.NMSeq2SeqTrainer if recipe.sparse else Seq2SeqTrainer

    class Trainer(TokenBatches, kind):
        max_tokens = recipe.max_tokens
        sort_window = recipe.sort_window

    with one_line_errors():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            processing_class=tokenizer,
            compute_loss_func=partial(
                label_smoothed_loss, smoothing=arguments.label_smoothing_factor
            ),
            **options,
        )
        trainer.get_train_dataloader(), trainer.get_eval_dataloader()  # whether any pair is left
    torch.manual_seed(arguments.seed + run.state.process_index)  # own dropout in every process
    run.train(trainer)
    averaged = []
    if recipe.average_checkpoints > 1:
        averaged = average_checkpoints(
            trainer.model, run.out, recipe.average_checkpoints, run.state.is_main_process
        )
        run.log.info(f"averaged the dense weights of updates {', '.join(map(str, averaged))}")
    losses = trainer.evaluate()
    model.config.use_cache = True  # training has turned it off
    trained = run.save(trainer)

    # ---- Score: the saved checkpoint, opened as anybody would open it
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(run.out).to(run.device)
    examples = [rows["validation"][number] for number in range(min(4, len(rows["validation"])))]
    probe = Collator(tokenizer.pad_token_id)(examples)
    inputs = {name: tensor.to(run.device) for name, tensor in probe.items() if name != "labels"}
    equal = same_outputs(trained, reloaded, inputs | {"use_cache": False})
    scored, samples = score(recipe, reloaded, tokenizer, splits, run)

    if run.state.is_main_process:
        results = run.results(
            trainer,
            reloaded,
            data=recipe.data,
            score=scored,
            reloaded_equal=equal,
            dictionary_baseline=dictionary_baseline(splits) if recipe.has_dictionary else None,
            validation_loss=losses["eval_loss"],
            validation_nll=losses["eval_nll"],
            pairs={split: len(rows) for split, rows in splits.items()},
            left_out=left_out,
            averaged_checkpoints=averaged,
            samples=samples,
            steps_before=updates_before(recipe.model_name_or_path),
            sparsity=[
                {
                    "name": layer.name,
                    "pattern": str(layer.pattern),
                    "shape": list(layer.shape),
                    "kept": layer.kept,
                }
                for layer in run.layers
            ],
        )
        heading = f"Translation, {recipe.method}"
        run.write(results, heading, trainer, "nats per token", recipe.dense_run)
    run.publish(trainer, recipe.dense_run)
    run.close()


if __name__ == "__main__":
    main()

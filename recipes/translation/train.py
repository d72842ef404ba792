"""Train a Transformer to translate, dense or N:M sparse from scratch, and score it with BLEU.

    accelerate launch recipes/translation/train.py recipes/translation/configs/embedded.yaml
    --method sr-ste

A YAML file first, then command-line options that override it. Every option of
`Seq2SeqTrainingArguments` is one too.
"""

from functools import partial
from typing import Any

import torch
from batching import Collator
from data import load_data
from model import build_model
from objective import TokenBatches, label_smoothed_loss
from options import parse
from scoring import dictionary_baseline, score, signature
from tokenizer import train_bpe
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer

import hf_nm
from hf_nm.experiments.earlier_runs import check_dense_run, updates_before
from hf_nm.experiments.options import one_line_errors, one_line_without_room, opened
from hf_nm.experiments.run import same_outputs, start


@one_line_without_room()
def main() -> None:
    recipe, arguments, run = start("translation", parse)

    # ---- Data: sentences, then token numbers
    with one_line_errors(), run.state.main_process_first():  # the others find a download finished
        splits, left_out = load_data(recipe)
    with one_line_errors(), run.state.main_process_first():
        tokenizer = run.made_once(
            AutoTokenizer,
            lambda: (
                train_bpe(
                    (text for column in ("source", "target") for text in splits["train"][column]),
                    recipe.vocab_size,
                )
                if not recipe.model_name_or_path
                else opened(AutoTokenizer, "model_name_or_path", recipe.model_name_or_path)
            ),
        )

        def tokenize(rows: dict[str, list[str]]) -> dict[str, list]:
            source, target = (tokenizer(rows[side])["input_ids"] for side in ("source", "target"))
            sizes = {"source_tokens": [*map(len, source)], "target_tokens": [*map(len, target)]}
            return {"input_ids": source, "labels": target, **sizes}

        tokens = splits.map(tokenize, batched=True, remove_columns=["source", "target"])

    for split in ("train", "validation"):
        kept = tokens[split].filter(
            lambda source, target: max(source, target) <= recipe.max_length,
            input_columns=["source_tokens", "target_tokens"],
        )
        too_long = len(tokens[split]) - len(kept)
        run.log.info(
            f"{split}: {len(kept):,} pairs; left out: {too_long} longer than {recipe.max_length} "
            f"tokens, {left_out.get(split, 0)} with an empty side"
        )
        left_out[split] = left_out.get(split, 0) + too_long
        tokens[split] = kept

    # ---- Model
    with one_line_errors():
        model = build_model(recipe, tokenizer)
        options = recipe.trainer_options(AutoModelForSeq2SeqLM, model, tokenizer)
        recipe.sparsify(model)
        check_dense_run(recipe.dense_run, signature())

    # ---- Training
    kind: Any = hf_nm.NMSeq2SeqTrainer if recipe.sparse else Seq2SeqTrainer

    class Trainer(TokenBatches, kind):
        max_tokens = recipe.max_tokens
        sort_window = recipe.sort_window

    with one_line_errors():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=tokens["train"],
            eval_dataset=tokens["validation"],
            processing_class=tokenizer,
            compute_loss_func=partial(
                label_smoothed_loss, smoothing=arguments.label_smoothing_factor
            ),
            **options,
        )
        trainer.get_train_dataloader(), trainer.get_eval_dataloader()  # whether any pair is left
    torch.manual_seed(arguments.seed + run.state.process_index)  # own dropout in every process
    run.train(trainer)
    losses = trainer.evaluate()
    model.config.use_cache = True  # training has turned it off
    trained = run.save(trainer)

    # ---- Score: the saved checkpoint, opened as anybody would open it
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(run.out).to(run.device)
    examples = tokens["validation"].select(range(min(4, len(tokens["validation"])))).to_list()
    probe = Collator(tokenizer.pad_token_id)(examples)
    inputs = {name: tensor.to(run.device) for name, tensor in probe.items() if name != "labels"}
    equal = same_outputs(trained, reloaded, inputs | {"use_cache": False})
    scored, samples = score(recipe, reloaded, tokenizer, splits, run)

    if run.state.is_main_process:
        embedded = recipe.corpus == "embedded" and not recipe.train_files
        results = run.results(
            trainer,
            reloaded,
            data="files" if recipe.train_files else recipe.corpus,
            score=scored,
            reloaded_equal=equal,
            dictionary_baseline=dictionary_baseline(splits) if embedded else None,
            validation_loss=losses["eval_loss"],
            validation_nll=losses["eval_nll"],
            pairs={split: len(rows) for split, rows in splits.items()},
            left_out=left_out,
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

"""Train a Transformer to translate, dense or N:M sparse from scratch, and score it with BLEU.

    accelerate launch recipes/translation/train.py recipes/translation/configs/embedded.yaml
    --method sr-ste

A YAML file first, then command-line options that override it. Every option of
`Seq2SeqTrainingArguments` is one too.
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
import torch
from accelerate import PartialState
from batching import Collator
from corpus import embedded_corpus
from decoding import translate
from objective import TokenBatches, label_smoothed_loss
from options import RecipeArguments, parse
from text_pairs import load_pairs
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar
from vocabulary import train_bpe

import hf_nm
from hf_nm.environment import environment
from hf_nm.experiments.metrics import SacreBLEU
from hf_nm.experiments.options import one_line_errors
from hf_nm.experiments.results import write_results
from hf_nm.hub.figures import plot_sad
from hf_nm.optim.sad_log import sad_summary

STARTED = time.perf_counter()


def load_corpus(recipe: RecipeArguments) -> tuple[datasets.DatasetDict, dict[str, int]]:
    """Splits train, validation, test with columns `source`, `target`; pairs left out per split."""
    files = {
        "train": recipe.train_files,
        "validation": recipe.validation_files,
        "test": recipe.test_files,
    }
    if recipe.corpus == "files" or any(files.values()):
        missing = [split for split, paths in files.items() if not paths]
        if missing:
            raise ValueError(
                f"no files for {', '.join(missing)}; give --train_files, --validation_files and "
                "--test_files, each as two text files (source target) or one .tsv, .csv or .jsonl."
            )
        return load_pairs(files, recipe.source_column, recipe.target_column)
    if recipe.corpus == "embedded":
        pairs = embedded_corpus().splits
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {"source": [en for en, _ in rows], "target": [de for _, de in rows]}
                )
                for split, rows in pairs.items()
            }
        ), {}
    # The Hub's wmt14: validation is newstest2013, test is newstest2014.
    try:
        hub = datasets.load_dataset("wmt14", "de-en")
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; without a network give --train_files, --validation_files and --test_files."
        ) from error
    return hub.map(
        lambda rows: {
            "source": [pair["en"] for pair in rows["translation"]],
            "target": [pair["de"] for pair in rows["translation"]],
        },
        batched=True,
        remove_columns=["translation"],
    ), {}


def main() -> None:
    # accelerate's launcher does not pass on its use_cpu to several processes.
    if "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with one_line_errors():
        recipe, arguments = parse(sys.argv[1:])
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

    # ---- Data: sentences, then token numbers
    with one_line_errors(), state.main_process_first():  # the others find a download finished
        splits, left_out = load_corpus(recipe)
    resumed_from = arguments.resume_from_checkpoint
    if resumed_from in ("True", "true"):
        resumed_from = get_last_checkpoint(out)
        if resumed_from is None:
            raise SystemExit(
                f"nothing to resume: no checkpoint in {out}; leave out --resume_from_checkpoint."
            )
    with state.main_process_first():
        # One process learns the merges, the others read them: all have the same numbers for sure.
        if resumed_from:
            tokenizer = AutoTokenizer.from_pretrained(resumed_from)
        elif state.is_main_process:
            tokenizer = train_bpe(
                (text for column in ("source", "target") for text in splits["train"][column]),
                recipe.vocab_size,
            )
            tokenizer.save_pretrained(out)
        else:
            tokenizer = AutoTokenizer.from_pretrained(out)

        def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
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
        log.info(
            f"{split}: {len(kept):,} pairs; left out: {too_long} longer than {recipe.max_length} "
            f"tokens, {left_out.get(split, 0)} with an empty side"
        )
        left_out[split] = left_out.get(split, 0) + too_long
        tokens[split] = kept

    # ---- Model: Vaswani's Transformer
    model = MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=recipe.d_model,
            encoder_layers=recipe.layers,
            decoder_layers=recipe.layers,
            encoder_attention_heads=recipe.heads,
            decoder_attention_heads=recipe.heads,
            encoder_ffn_dim=recipe.ffn_dim,
            decoder_ffn_dim=recipe.ffn_dim,
            activation_function="relu",
            dropout=recipe.dropout,
            attention_dropout=recipe.attention_dropout,
            activation_dropout=recipe.activation_dropout,
            # Small, so that each post-norm block starts near the identity: on Multi30k (3 + 3 layers of
            # width 256) 2.71 nats a token after 500 updates, against 3.76 with d_model ** -0.5.
            init_std=recipe.init_std,
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            max_position_embeddings=recipe.max_length + 64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=None,
        )
    )
    with one_line_errors():
        options = recipe.trainer_options(AutoModelForSeq2SeqLM, model, tokenizer)
        recipe.sparsify(model)

    # ---- Training
    class Trainer(TokenBatches, hf_nm.NMSeq2SeqTrainer if recipe.sparse else Seq2SeqTrainer):
        max_tokens = recipe.max_tokens
        sort_window = recipe.sort_window

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=tokens["train"],
        eval_dataset=tokens["validation"],
        processing_class=tokenizer,
        compute_loss_func=partial(label_smoothed_loss, smoothing=arguments.label_smoothing_factor),
        **options,
    )
    torch.manual_seed(arguments.seed + state.process_index)  # own dropout in every process
    training_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resumed_from)
    train_seconds = time.perf_counter() - training_started
    losses = trainer.evaluate()
    # Training has turned off the cache and, in mixed precision, wrapped the forward.
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.config.use_cache = True
    trainer.save_model(out)
    trainer.save_state()  # trainer_state.json: everything that was logged
    state.wait_for_everyone()

    # ---- Score: the saved checkpoint, opened as anybody would open it
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(out).to(device)
    examples = tokens["validation"].select(range(min(4, len(tokens["validation"])))).to_list()
    probe = Collator(tokenizer.pad_token_id)(examples)
    probe = {name: tensor.to(device) for name, tensor in probe.items() if name != "labels"}
    with torch.inference_mode():
        same_logits = torch.equal(
            model.eval()(**probe, use_cache=False).logits,
            reloaded.eval()(**probe, use_cache=False).logits,
        )
    search = {"num_beams": recipe.num_beams}
    if recipe.num_beams > 1:
        search["length_penalty"] = recipe.length_penalty
    bleu, samples = {}, []
    for split in ("validation", "test"):
        sentences, references = list(splits[split]["source"]), list(splits[split]["target"])
        translations, cut = translate(
            reloaded,
            tokenizer,
            sentences,
            max_tokens=recipe.max_tokens,
            max_length=recipe.max_length,
            **search,
        )
        scored = SacreBLEU(keep_in_memory=True).compute(
            predictions=translations, references=references
        )
        bleu[split] = scored["score"]
        log.info(f"{split}: BLEU {scored['score']:.2f}  {scored['signature']}  ({cut} sources cut)")
        samples = [
            {"source": s, "translation": t, "reference": r}
            for s, t, r in zip(sentences[:5], translations, references, strict=False)
        ]
    baseline = None
    if recipe.corpus == "embedded" and not recipe.train_files:
        guesses = [
            embedded_corpus().word_by_word(sentence) for sentence in splits["test"]["source"]
        ]
        baseline = SacreBLEU(keep_in_memory=True).compute(
            predictions=guesses, references=list(splits["test"]["target"])
        )["score"]

    if state.is_main_process:
        rows = hf_nm.verify(out).layers if recipe.sparse else []
        launcher = (
            ["accelerate", "launch"]
            if "ACCELERATE_MIXED_PRECISION" in os.environ
            else [Path(sys.executable).name]
        )
        results = {
            "recipe": "translation",
            "data": "files" if recipe.train_files else recipe.corpus,
            "method": recipe.method,
            "pattern": recipe.pattern,
            "decay": recipe.decay if recipe.method == "sr-ste" else None,
            "score": {
                "metric": "BLEU",
                **bleu,
                "signature": scored["signature"],
                **search,
            },
            "dictionary_baseline": baseline,
            "validation_loss": losses["eval_loss"],
            "validation_nll": losses["eval_nll"],
            "model": {
                "parameters": reloaded.num_parameters(),
                "nm_weights": sum(prod(row.shape) for row in rows),
                "nm_weights_kept": sum(row.kept for row in rows),
            },
            "sad": sad_summary(trainer.state.log_history) if recipe.sparse else None,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "pairs": {split: len(rows) for split, rows in splits.items()},
            "left_out": left_out,
            "time": {"train_s": train_seconds, "total_s": time.perf_counter() - STARTED},
            "reloaded_logits_equal": same_logits,
            "seed": arguments.seed,
            "command": shlex.join([*launcher, *sys.argv]),
            **environment(state.num_processes),
            "samples": samples,
            "sparsity": [
                {
                    "name": row.name,
                    "pattern": str(row.pattern),
                    "shape": list(row.shape),
                    "kept": row.kept,
                }
                for row in rows
            ],
        }
        print(write_results(results, out, f"Translation, {recipe.method}"))
        plot_sad(
            trainer.state.log_history,
            out / "sad.png",
            f"{recipe.method} {results['pattern'] or ''}",
            loss_unit="nats per token",
        )
    # The others wait: the launcher would stop the first when a second one is gone.
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()

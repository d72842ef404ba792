"""Runs that are killed, find the disk full, or find their files damaged: each must be resumed to the
very same result, or be refused with a message of ours.

    python recipes/benchmark/chaos.py --kills 300 --damaged 10000

A kill is SIGKILL to a tiny run of a recipe or of `NMTrainer`, alone or as one of two ranks, that saves
checkpoints: at a random moment, or at a write (a file opened for writing, renamed, removed or flushed, a
folder made), where a file just written may lose its end; one run in three is hit again while it resumes.
One in four finds no room instead: for a file beyond some size (RLIMIT_FSIZE) or, where this process may
mount a disk in memory, on a disk that really is full (ENOSPC); a recipe must then end with one line.
Afterwards the run is resumed as a user would, following what the messages say: weights, logs and results
must be those of a run that nothing happened to.

Damage is done to a file that the package reads, which is then read. Whatever is neither the same result
nor a message of ours counts as lost, is printed with its number, and makes the exit code 1; `--first
NUMBER --kills 1 --damaged 0` does a kill again. Children are forked from this process, which has
imported everything. Ctrl-C ends it with the counts so far.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import chaos_files
import safetensors.torch
import torch
import transformers
from chaos_children import Disk, Fate, in_child, in_two

import hf_nm
import hf_nm.experiments.comparison
import hf_nm.experiments.run

RECIPES = Path(__file__).parents[1]
TIMES = ("train_s", "total_s")


# -- what is run --------------------------------------------------------------------------------------


def train_recipe(name: str, out: Path, *more: str) -> None:
    """A tiny run of a recipe in this process, which is no other recipe's."""
    common = "--max_steps 6 --logging_steps 1 --save_strategy steps --save_steps 2 --warmup_steps 2"
    common += " --eval_strategy no --use_cpu True --learning_rate 0.01"
    own = {
        "translation": "--d_model 16 --ffn_dim 32 --layers 1 --heads 2 --vocab_size 300 --num_beams 1 "
        "--max_tokens 256 --dropout 0.1",
        "classification": "--config_name bert --config_overrides hidden_size=16,num_hidden_layers=1,"
        "num_attention_heads=2,intermediate_size=32,max_position_embeddings=64 --vocab_size 300 "
        "--max_length 32 --per_device_train_batch_size 4",
    }[name]
    data = [f"--{split}_file{'s' if name == 'translation' else ''}" for split in SPLITS]
    files = [str(out.parent / f"{name}-{split}.tsv") for split in SPLITS]
    options = [part for pair in zip(data, files, strict=True) for part in pair]
    folder = RECIPES / name
    sys.path.insert(0, str(folder))
    sys.argv = [str(folder / "train.py"), *options, *own.split(), *common.split()]
    sys.argv += [*more, "--output_dir", str(out)]
    if name == "classification":
        sys.argv += ["--text_columns", "sentence"]
    importlib.import_module("train").main()


RECIPES_RUN = ("translation", "classification")
SPLITS = {"train": 40, "validation": 6, "test": 6}


def write_data(folder: Path) -> None:
    """Rows for the recipes."""
    words = ["good", "bad", "long", "short", "film", "plot", "cast", "end"]
    random_ = random.Random(0)
    for split, count in SPLITS.items():
        texts = [" ".join(random_.choices(words, k=4)) for _ in range(count)]
        pairs = "".join(f"{text}\t{text[::-1]}\n" for text in texts)
        (folder / f"translation-{split}.tsv").write_text(f"en\tde\n{pairs}")
        labels = "".join(f"{text}\t{text.count('good') > 0}\n" for text in texts)
        (folder / f"classification-{split}.tsv").write_text(f"sentence\tlabel\n{labels}")


def train_trainer(out: Path, *more: str) -> None:
    """A tiny run of NMTrainer in this process."""
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = hf_nm.sparsify(transformers.BertForSequenceClassification(config))
    rows = [
        {"input_ids": torch.arange(7) * (row + 3) % 32, "labels": torch.tensor(row % 2)}
        for row in range(16)
    ]
    arguments = transformers.TrainingArguments(
        str(out),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        logging_steps=1,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = hf_nm.NMTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=True if "True" in more else None)
    trainer.save_model(str(out))
    trainer.save_state()


SUBJECTS: dict[str, Callable[..., None]] = {
    "trainer": train_trainer,
    "ranks": lambda out, *more: in_two(lambda: train_trainer(out, *more)),
    "translation": lambda out, *more: train_recipe("translation", out, *more),
    "classification": lambda out, *more: train_recipe("classification", out, *more),
}


def result(out: Path) -> dict[str, Any]:
    """All that must be the same: weights, logs, results, without times."""
    digest = hashlib.sha256()
    for name, weight in sorted(safetensors.torch.load_file(out / "model.safetensors").items()):
        digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    found: dict[str, Any] = {
        "weights": digest.hexdigest(),
        "logs": [{key: row.get(key) for key in ("step", "loss", "nm/sad")} for row in history],
        "sad": (out / "nm_sad.jsonl").read_text(),
    }
    if (out / "results.json").exists():
        results = json.loads((out / "results.json").read_text())
        results["time"] = {k: v for k, v in results["time"].items() if k not in TIMES}
        found["results"] = {key: results[key] for key in results if key != "command"}
    return found


# -- trials -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A run that nothing happens to: its result, writes and seconds."""

    result: dict[str, Any]
    writes: int
    seconds: float


def whole_run(subject: str, scratch: Path, disk: Disk) -> Whole:
    """The run to compare with."""
    out, log = disk.folder / "whole", scratch / "log"
    end = in_child(lambda: SUBJECTS[subject](out), out, log)
    if end.kind != "done":
        raise SystemExit(f"{subject}: an undisturbed run {end.kind}: {end.said}\n{log.read_text()}")
    found = Whole(result(out), end.writes, end.seconds)
    shutil.move(out, scratch / f"whole-{subject}")
    return found


INEXACT = "whatever else is random does not continue exactly"
KINDS = ["write", "write", "write", "moment", "moment", "moment", "full disk", "large file"]


def some_fate(random_: random.Random, whole: Whole, disk: Disk, ranks: int) -> tuple[str, Fate]:
    kind, rank = random_.choice(KINDS), random_.randrange(ranks)
    who = f"{kind} of rank {rank}" if ranks > 1 else kind
    if kind == "write":
        cut = random_.choice([None, None, 0.0, random_.random()])
        # The second rank writes little, so most of its numbers would come too late.
        last = 8 if rank else whole.writes
        return who, Fate(write=random_.randint(1, last), cut=cut, rank=rank)
    if kind == "moment":
        return who, Fate(seconds=random_.uniform(0.01, whole.seconds), rank=rank)
    if kind == "full disk" and disk.mounted:
        return kind, Fate(disk=int(2 ** random_.uniform(2, 10)))
    return "large file", Fate(room=int(2 ** random_.uniform(0, 17)))


def kill_trial(
    subject: str, whole: Whole, scratch: Path, disk: Disk, random_: random.Random
) -> tuple[str, str]:
    """Something happens to a run, which is then resumed: what it was, and how it ended."""
    out, log = disk.folder / "out", scratch / "log"
    log.write_text("")
    raw = ""

    def happens(*more: str) -> tuple[str, Any]:
        nonlocal raw
        kind, fate = some_fate(random_, whole, disk, 2 if subject == "ranks" else 1)
        disk.leave(fate.disk)
        end = in_child(lambda: SUBJECTS[subject](out, *more), out, log, fate)
        disk.leave(None)
        if end.kind == "failed" and subject in RECIPES_RUN:
            raw = raw or f"BAD {kind} ended in a traceback: {end.said[:300]}"
        return kind, end

    what, end = happens()
    if end.kind != "done" and random_.random() < 1 / 3:
        again, end = happens("--resume_from_checkpoint", "True")
        what += f", then {again}"
    ways = [("--resume_from_checkpoint", "True"), (), ("--start_over", "true")]
    said = ""
    for way in ways if end.kind != "done" else []:
        if subject not in RECIPES_RUN and way == ():
            shutil.rmtree(out, ignore_errors=True)  # nothing to resume, so begun anew
        end = in_child(partial(SUBJECTS[subject], out, *way), out, log)
        nothing_yet = "No valid checkpoint found" in end.said and not list(out.glob("checkpoint-*"))
        if end.kind != "refused" and not nothing_yet:
            said = said or ("resumed" if way == ways[0] else "begun anew")
            break
    if end.kind == "done":
        found = result(out)
        different = [key for key in whole.result if found.get(key) != whole.result[key]]
        shown = "; ".join(f"{found.get(key)} instead of {whole.result[key]}" for key in different)
        ended = f"{said or 'ended'}, the same"
        if different and INEXACT in log.read_text():  # no checkpoint had all random states
            ended = "resumed, not exactly, as it says"
        elif different:
            ended = f"BAD other {', '.join(different)} ({shown:.3000})"
    else:
        ended = f"BAD {end.kind} ({end.said[:300]})"
    ended = raw or ended
    shutil.rmtree(out, ignore_errors=True)
    return f"{subject}: {what}", ended


class Counts:
    """What was tried, and what survived."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()

    def bad(self) -> int:
        return sum(
            n for counts in (self.kills, self.damaged) for end, n in counts.items() if "BAD" in end
        )

    def show(self) -> None:
        for name, counts in (("runs", self.kills), ("damaged files", self.damaged)):
            tried = counts.total()
            bad = sum(number for end, number in counts.items() if "BAD" in end)
            print(f"{tried} {name} tried, {tried - bad} survived")
            for end, number in sorted(counts.items()):
                print(f"{number:6} {end}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="runs that something happens to")
    parser.add_argument("--damaged", type=int, default=10_000, help="files that are damaged")
    parser.add_argument("--minutes", type=float, help="end after these, whatever was not tried yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", choices=SUBJECTS, help="what is run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    deadline = time.monotonic() + 60 * (arguments.minutes or 1e6)
    counts = Counts()
    subjects = [arguments.only] if arguments.only else list(SUBJECTS)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "disk").mkdir()
        disk = Disk(scratch / "disk")
        write_data(disk.folder)
        with open(os.devnull, "w") as nowhere:  # whatever is imported late is imported now
            shown, sys.stdout = sys.stdout, nowhere
            train_trainer(scratch / "warm")
            sys.stdout = shown
        try:
            wholes = {subject: whole_run(subject, scratch, disk) for subject in subjects}
            reader = chaos_files.Damaged(scratch, subjects)
            files = iter(range(arguments.damaged))
            # Two ranks take as long as the others together.
            order = [name for name in subjects if name != "ranks"] * 2 + ["ranks"]
            order = [name for name in order if name in subjects]
            each = math.ceil(arguments.damaged / max(1, arguments.kills))

            def damage(cases: Iterable[int]) -> None:
                for case in cases:
                    if time.monotonic() > deadline:
                        break
                    ended = reader.trial(random.Random(f"{arguments.seed}-file-{case}"))
                    counts.damaged[ended.split("(")[0]] += 1
                    if "BAD" in ended:
                        print(f"file {case}: {ended:.300}", flush=True)

            for number in range(arguments.first, arguments.first + arguments.kills):
                if time.monotonic() > deadline:
                    break
                random_ = random.Random(f"{arguments.seed}-{number}")
                subject = order[number % len(order)]
                what, ended = kill_trial(subject, wholes[subject], scratch, disk, random_)
                counts.kills[f"{what}: {ended.split('(')[0]}"] += 1
                if "BAD" in ended:
                    print(f"kill {number}: {what}: {ended}", flush=True)
                damage(itertools.islice(files, each))  # a run cut short has some of both
            damage(files)
        except KeyboardInterrupt:
            print("stopped")
        finally:
            disk.close()
        counts.show()
    raise SystemExit(bool(counts.bad()))


if __name__ == "__main__":
    main()

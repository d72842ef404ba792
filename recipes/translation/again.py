"""Translations of runs that kept none: the test set once more, by the saved checkpoint, as it was."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import load_data
from decoding import translate
from options import CONFIGS, RecipeArguments, parse
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_nm.experiments.results import TRANSLATIONS_FILE, write_translations
from hf_nm.hub.scores import read_run


def translate_again(folders: Sequence[Path], out: Path) -> None:
    """Write the translations of each run that has none into a folder of its name in `out`.

    Whoever reads them compares their score with that of the run's results.

    Args:
        folders: output directories of finished runs, with their checkpoints.
        out: what is there already is not made again.

    Raises:
        ValueError: a run's command does not say what it was scored on.
    """
    for folder in map(Path, folders):
        there = [place / TRANSLATIONS_FILE for place in (folder, out / folder.name)]
        if any(file.is_file() for file in there) or not (folder / "results.json").is_file():
            continue
        recipe = _options_of(folder)
        test = load_data(recipe)[0]["test"]
        search: dict[str, Any] = {"num_beams": recipe.num_beams}
        if recipe.num_beams > 1:
            search["length_penalty"] = recipe.length_penalty
        sources, references = list(test["source"]), list(test["target"])
        print(f"{folder.name}: kept no translations; translating {len(sources):,} sentences again")
        translations, _ = translate(
            AutoModelForSeq2SeqLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            sources,
            max_tokens=recipe.max_tokens,
            max_length=recipe.max_length,
            **search,
        )
        write_translations(out / folder.name, sources, translations, references)


def _options_of(folder: Path) -> RecipeArguments:
    """The options of the command that a run's results have."""
    words = shlex.split(read_run(folder / "results.json").get("command") or "")
    at = next((at for at, word in enumerate(words) if word.endswith("train.py")), None)
    if at is None:
        raise ValueError(
            f"{folder}: no command of train.py in its results, so nobody knows its test set; score it "
            "again with this version."
        )
    options = words[at + 1 :]
    # The shipped configurations, wherever that run's clone was.
    if options and options[0].endswith(".yaml") and not Path(options[0]).is_file():
        options[0] = str(CONFIGS / Path(options[0]).name)
    # What is read here is data and search; checkpoints and devices are that run's own.
    ignored = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    ignored.add_argument("--resume_from_checkpoint")
    _, options = ignored.parse_known_args(options)
    return parse(options)[0]

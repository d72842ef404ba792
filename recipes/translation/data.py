"""Which sentence pairs are trained and scored: the embedded ones, local files, or the Hub's WMT14."""

import datasets
from corpus import embedded_corpus
from datasets import Dataset, DatasetDict
from options import RecipeArguments

from hf_nm.experiments.rows import ENDINGS, read_lines, read_rows

Pairs = tuple[list[str], list[str]]


def load_data(recipe: RecipeArguments) -> tuple[DatasetDict, dict[str, int]]:
    """Splits train, validation, test with columns `source`, `target`; pairs left out per split."""
    given = {
        "train": recipe.train_files,
        "validation": recipe.validation_files,
        "test": recipe.test_files,
    }
    files = {split: paths for split, paths in given.items() if paths}
    if recipe.corpus == "files" or files:
        missing = [split for split in given if split not in files]
        if missing:
            raise ValueError(
                f"no files for {', '.join(missing)}; give --train_files, --validation_files and "
                "--test_files, each as two text files (source target) or one .tsv, .csv or .jsonl."
            )
        return load_pairs(files, recipe.source_column, recipe.target_column)
    if recipe.corpus == "embedded":
        return DatasetDict(
            {
                split: Dataset.from_dict(
                    {"source": [en for en, _ in rows], "target": [de for _, de in rows]}
                )
                for split, rows in embedded_corpus().splits.items()
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


def read_pairs(files: list[str], source: str = "en", target: str = "de") -> Pairs:
    """Read source and target sentences, line `i` of one translating line `i` of the other.

    Args:
        files: either two text files, source first, one sentence a line; or one `.tsv` or `.csv`
            whose first line names the columns; or one `.jsonl` of objects with the two keys, or
            with a `translation` object that has them. Each may be gzipped (`.gz`).
        source, target: the column names in TSV, CSV and JSONL.
    """
    if len(files) == 2:
        sides = [[line for _, line in read_lines(file)] for file in files]
        if len(sides[0]) != len(sides[1]):
            short, long = sorted(zip(map(len, sides), files, strict=True))
            raise ValueError(
                f"{long[1]} has {long[0]} lines and {short[1]} has {short[0]}: from line "
                f"{short[0] + 1} on there is nothing to pair. Both files need one sentence a line, "
                "line by line translations of each other."
            )
        return sides[0], sides[1]
    if len(files) != 1 or not files[0].removesuffix(".gz").endswith(ENDINGS):
        raise ValueError(
            f"expected two text files (source, target) or one that ends in {', '.join(ENDINGS)} or "
            f"one of these and .gz, got {len(files)}: {files}"
        )
    remedy = "see --source_column and --target_column"
    pairs: Pairs = [], []
    for number, row in read_rows(files[0], (source, target), remedy, nested="translation"):
        for side, column in zip(pairs, (source, target), strict=True):
            cell = row[column]
            if not isinstance(cell, str):
                raise ValueError(
                    f"{files[0]}, line {number}: {column!r} holds {cell!r}, not text; put "
                    f"it in quotes ({remedy})."
                )
            side.append(cell)
    return pairs


def load_pairs(
    files: dict[str, list[str]], source: str = "en", target: str = "de"
) -> tuple[DatasetDict, dict[str, int]]:
    """Read several splits, e.g. `{"train": ["x.en", "x.de"], "test": ["y.tsv"]}`.

    Training pairs with an empty side are left out; in any other split they are an error, since
    leaving them out would change the score.

    Returns:
        Splits with the columns `source` and `target`, and per split how many pairs were left out.
    """
    splits, left_out = DatasetDict(), {}
    for split, paths in files.items():
        pairs = list(zip(*read_pairs(paths, source, target), strict=True))
        full = [pair for pair in pairs if pair[0].strip() and pair[1].strip()]
        if split != "train" and len(full) != len(pairs):
            number = next(
                i for i, pair in enumerate(pairs, 1) if not (pair[0].strip() and pair[1].strip())
            )
            raise ValueError(
                f"{' + '.join(paths)}: sentence pair {number} of the {split} split has an empty "
                "side; take it out of the file or fill it in."
            )
        if not full:
            raise ValueError(f"{' + '.join(paths)}: no pair has text on both sides.")
        left_out[split] = len(pairs) - len(full)
        splits[split] = Dataset.from_dict(
            {"source": [pair[0] for pair in full], "target": [pair[1] for pair in full]}
        )
    return splits, left_out

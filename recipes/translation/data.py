"""Which sentence pairs are trained and scored: the embedded ones, local files, or the Hub's."""

from collections.abc import Iterator
from itertools import zip_longest

import datasets
from corpus import embedded_corpus
from datasets import Dataset, DatasetDict
from options import RecipeArguments
from preparing import stored_pairs

from hf_nm.experiments.rows import ENDINGS, read_lines, read_rows

SPLITS = ("train", "validation", "test")
EMBEDDED = ("en", "de")  # the languages of corpus.py


def load_data(recipe: RecipeArguments) -> DatasetDict:
    """Splits train, validation, test with the columns `source` and `target`, as text.

    What comes from files or the Hub stays on disk, mapped into memory. Training pairs may have an
    empty side, and are cleaned later; in any other split that is an error, since leaving them out would
    change the score.

    Raises:
        ValueError: there is no such column, split or language, or a file cannot be read.
        ConnectionError: the Hub's data set is neither here nor reachable.
    """
    given = {
        "train": recipe.train_files,
        "validation": recipe.validation_files,
        "test": recipe.test_files,
    }
    files = {split: paths for split, paths in given.items() if paths}
    columns = (recipe.source_column, recipe.target_column)
    if recipe.corpus == "files" or files:
        missing = [split for split in given if split not in files]
        if missing:
            raise ValueError(
                f"no files for {', '.join(missing)}; give --train_files, --validation_files and "
                "--test_files, each as two text files (source target) or one .tsv, .csv or .jsonl."
            )
        splits = load_pairs(files, *columns)
    elif recipe.corpus == "embedded":
        splits = _embedded(*columns)
    else:
        splits = _hub(recipe.dataset, recipe.dataset_config, *columns)
    for split in ("validation", "test"):
        _check_full(splits[split], split, files.get(split) or [recipe.dataset])
    return splits


def load_pairs(files: dict[str, list[str]], source: str = "en", target: str = "de") -> DatasetDict:
    """Read several splits, e.g. `{"train": ["x.en", "x.de"], "test": ["y.tsv"]}`."""
    return DatasetDict(
        {
            split: stored_pairs(paths, (source, target), read_pairs(paths, source, target), split)
            for split, paths in files.items()
        }
    )


def read_pairs(
    files: list[str], source: str = "en", target: str = "de"
) -> Iterator[tuple[str, str]]:
    """Read source and target sentences, line `i` of one translating line `i` of the other.

    Args:
        files: either two text files, source first, one sentence a line; or one `.tsv` or `.csv`
            whose first line names the columns; or one `.jsonl` of objects with the two keys, or
            with a `translation` object that has them. Each may be gzipped (`.gz`).
        source, target: the column names in TSV, CSV and JSONL.

    Raises:
        ValueError: when the line is reached that cannot be read.
    """
    if len(files) == 2:
        counts = [0, 0]
        for pair in zip_longest(*map(read_lines, files)):
            counts = [count + (line is not None) for count, line in zip(counts, pair, strict=True)]
            if None not in pair:
                yield pair[0][1], pair[1][1]
        if counts[0] != counts[1]:
            short, long = sorted(zip(counts, files, strict=True))
            raise ValueError(
                f"{long[1]} has {long[0]} lines and {short[1]} has {short[0]}: from line "
                f"{short[0] + 1} on there is nothing to pair. Both files need one sentence a line, "
                "line by line translations of each other."
            )
        return
    if len(files) != 1 or not files[0].removesuffix(".gz").endswith(ENDINGS):
        raise ValueError(
            f"expected two text files (source, target) or one that ends in {', '.join(ENDINGS)} or "
            f"one of these and .gz, got {len(files)}: {files}"
        )
    remedy = "see --source_column and --target_column"
    for number, row in read_rows(files[0], (source, target), remedy, nested="translation"):
        for column in (source, target):
            if not isinstance(row[column], str):
                raise ValueError(
                    f"{files[0]}, line {number}: {column!r} holds {row[column]!r}, not text; put "
                    f"it in quotes ({remedy})."
                )
        yield str(row[source]), str(row[target])


def _embedded(source: str, target: str) -> DatasetDict:
    if {source, target} != set(EMBEDDED):
        raise ValueError(
            f"the embedded corpus has the languages {' and '.join(EMBEDDED)}, not {source} and "
            f"{target}; give --source_column and --target_column one of them each, or data of your own."
        )
    sides = [EMBEDDED.index(source), EMBEDDED.index(target)]
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {
                    name: [pair[side] for pair in pairs]
                    for name, side in zip(("source", "target"), sides, strict=True)
                }
            )
            for split, pairs in embedded_corpus().splits.items()
        }
    )


def _hub(name: str, config: str | None, source: str, target: str) -> DatasetDict:
    """A translation data set of the Hub: of wmt14 validation is newstest2013, test newstest2014."""
    try:
        hub = datasets.load_dataset(name, config)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; without a network give --train_files, --validation_files and --test_files."
        ) from error
    missing = [split for split in SPLITS if split not in hub]
    if missing:
        raise ValueError(
            f"--dataset {name} has the splits {', '.join(hub)}, but no {', '.join(missing)}; give "
            "files, or another data set."
        )
    found = DatasetDict()
    for split in SPLITS:
        flat = hub[split].flatten()  # without a copy of the text
        names = {f"translation.{source}": "source", f"translation.{target}": "target"}
        if lacking := [column for column in names if column not in flat.column_names]:
            raise ValueError(
                f"--dataset {name} {config or ''}: no {', '.join(lacking)} among {flat.column_names}; "
                "see --source_column and --target_column."
            )
        found[split] = flat.select_columns(list(names)).rename_columns(names)
    return found


def _check_full(pairs: Dataset, split: str, names: list[str]) -> None:
    full = (
        bool(source.strip() and target.strip())
        for batch in pairs.iter(10_000)
        for source, target in zip(batch["source"], batch["target"], strict=True)
    )
    for number, is_full in enumerate(full, 1):
        if not is_full:
            raise ValueError(
                f"{' + '.join(names)}: sentence pair {number} of the {split} split has an empty side; "
                "take it out of the file or fill it in."
            )

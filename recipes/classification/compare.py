"""The arms of an experiment in one command, or tables of runs over tasks and seeds.

python recipes/classification/compare.py recipes/classification/configs/finetune.yaml --out out/compare
    --methods dense asp ste sr-ste --patterns 2:4 --seeds 1 2 3 [options of train.py]
python recipes/classification/compare.py --from out/compare/* --out out/table
python recipes/classification/compare.py out/* [--against "ASP 2:4"] [--write table.md] [--plot sad.png]
"""

import argparse
import sys
from pathlib import Path

from options import parse

from hf_nm.experiments.arms.command import add_options, compare_arms
from hf_nm.experiments.comparison import compare_tasks, plot_arms, results_file
from hf_nm.experiments.options import one_line_errors
from hf_nm.hub.scores import read_run


def tables(given: argparse.Namespace, folders: list[str]) -> None:
    """Print scores, recovery with intervals and, if that is asked for, draw flip rates."""
    print(compare_tasks(folders, given.write, given.resamples, given.against))
    if given.plot:
        runs = {folder: read_run(results_file(folder)) for folder in folders}
        sparse = {
            f"{run['task']}, {run['arm']}, seed {run['seed']}": results_file(folder).parent
            for folder, run in runs.items()
            if run["method"] != "dense"
        }
        plot_arms(sparse, given.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    of_tasks = parser.add_argument_group("tables over tasks and seeds")
    of_tasks.add_argument("--against", metavar="ARM", help="that others are compared with")
    of_tasks.add_argument("--write", metavar="FILE", help="also write the tables into this file")
    of_tasks.add_argument("--plot", metavar="FILE", help="draw the runs' flip rates (PNG)")
    given, rest = parser.parse_known_args()
    if rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml")):
        with one_line_errors():
            tables(given, rest)
        sys.exit()
    # What starts from a checkpoint is not built anew from a config.
    from_run = ("--config_name", "", "--model_name_or_path")
    train = Path(__file__).with_name("train.py")
    compare_arms("classification", parse, train, given, rest, from_run)

"""The arms of an experiment in one command, or a table of runs.

python recipes/vision/compare.py recipes/vision/configs/cifar_resnet20.yaml --out out/compare
    --methods dense asp ste sr-ste --patterns 2:4 1:8 --seeds 42 43 44 [options of classify.py]
python recipes/vision/compare.py --from out/compare/* --out out/table
python recipes/vision/compare.py out/dense out/ste out/sr-ste [--write table.md]
"""

import argparse
import sys
from pathlib import Path

from options import parse

from hf_nm.experiments.arms.command import add_options, compare_arms
from hf_nm.experiments.comparison import compare
from hf_nm.experiments.options import one_line_errors

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument(
        "--write", metavar="FILE", help="of a table of runs: write it into this file"
    )
    given, rest = parser.parse_known_args()
    if rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml")):
        with one_line_errors():
            print(compare(rest, given.write))
        sys.exit()
    # What starts from a checkpoint is not built anew from a config.
    from_run = ("--config_name", "", "--model_name_or_path")
    script = Path(__file__).with_name("classify.py")
    compare_arms("image-classification", parse, script, given, rest, from_run)

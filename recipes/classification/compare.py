"""Arms over tasks and seeds in one comparison: scores, recovery with intervals, SAD curves.

python recipes/classification/compare.py out/* [--against "ASP 2:4"] [--write table.md] [--plot sad.png]
"""

import argparse

from hf_nm.experiments.comparison import compare_tasks, plot_arms, results_file
from hf_nm.experiments.options import one_line_errors
from hf_nm.hub.scores import read_run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="output directories that hold a results.json")
    parser.add_argument("--against", metavar="ARM", help="the arm that others are compared with")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the paired bootstrap")
    parser.add_argument("--write", metavar="FILE", help="also write the tables into this file")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the runs' flip rates into this PNG file"
    )
    options = parser.parse_args()
    with one_line_errors():
        print(compare_tasks(options.folders, options.write, options.resamples, options.against))
        if options.plot:
            runs = {folder: read_run(results_file(folder)) for folder in options.folders}
            sparse = {
                f"{run['task']}, {run['arm']}, seed {run['seed']}": results_file(folder).parent
                for folder, run in runs.items()
                if run["method"] != "dense"
            }
            plot_arms(sparse, options.plot)

"""Several runs in one table.

python recipes/vision/compare.py out/dense out/ste out/sr-ste [--write table.md]
"""

import argparse

from hf_nm.experiments.comparison import compare

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="output directories that hold a results.json")
    parser.add_argument("--write", metavar="FILE", help="also write the table into this file")
    options = parser.parse_args()
    print(compare(options.folders, options.write))

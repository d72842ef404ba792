"""What recipes share about results: SAD in sum, the plot, the tables."""

import json
import math

import pytest

from hf_nm.experiments.comparison import compare
from hf_nm.experiments.results import markdown_table, read_predictions, write_results
from hf_nm.hub.figures import plot_sad
from hf_nm.hub.scores import read_run, read_scores
from hf_nm.optim.sad_log import sad_summary

HISTORY = [
    {"step": 10, "loss": 4.0, "nm/sad": 6, "nm/flip_rate": 0.01, "nm/sad_init": 6},
    {"step": 30, "loss": 3.0, "nm/sad": 2, "nm/flip_rate": 0.04, "nm/sad_init": 5},
    {"step": 30, "eval_loss": 3.5},
]


def test_sad_summary_literal():
    """Red if intervals of unequal length weigh alike, or SAD from the start is summed."""
    assert sad_summary(HISTORY) == {
        "total": 8,
        "from_start": 5,
        "mean_flip_rate": pytest.approx((0.01 * 10 + 0.04 * 20) / 30),
        "intervals": 2,
        "steps": 30,
    }
    assert sad_summary([{"step": 10, "loss": 4.0}]) is None


def test_plot(tmp_path):
    """Red if drawing needs a display or a SAD column."""
    plot_sad(HISTORY, tmp_path / "sad.png", "sr-ste 2:4")
    plot_sad([{"step": 1, "loss": 2.0}], tmp_path / "dense.png")
    assert (tmp_path / "sad.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_markdown_table_keeps_its_cells():
    """Red if a number is rounded or written anew, a bar ends its cell, or no rows are an error."""
    rows = [["a|b", "30.00", "3.000e-02"], ["1", "+0.50", "-"]]
    lines = markdown_table(["run", "x|y", "x"], rows).splitlines()
    assert [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]] == [
        ["| a\\|b", "30.00", "3.000e-02 |"],
        ["| 1", "+0.50", "-         |"],
    ]
    assert lines[0].split() == ["|", "run", "|", "x\\|y", "|", "x", "|"]
    assert set(lines[1]) == {"|", "-"}
    assert len(markdown_table(["run", "x"], []).splitlines()) == 2


def test_what_is_not_finite(tmp_path):
    """Red if results.json holds NaN or Infinity, which other programs refuse, or is not read back."""
    run = {"method": "ste", "steps": 3, "time": {"train_s": 1.0}, "validation_loss": float("inf")}
    run["score"] = {"metric": "pearsonr", "test": float("nan"), "signature": "a"}
    text = write_results(run, tmp_path, "A run")
    assert "nan" in text

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert found["score"]["test"] is found["validation_loss"] is None
    assert math.isnan(read_run(tmp_path / "results.json")["score"]["test"])
    assert read_scores(tmp_path) == []
    assert "nan" in compare([tmp_path])


PLACES = [("steps",), ("score",), ("score", "test"), ("score", "metric"), ("method",), ("time",)]
PLACES += [("time", "train_s"), ("sad",), ("sad", "total"), ("metrics",), ("arm",)]
DAMAGED = {
    "cut": lambda run: json.dumps(run)[:40].encode(),
    "deep": lambda run: b"[" * 100_000,
    "bytes": lambda run: b"\xff\xfe" + json.dumps(run).encode(),
    "digits": lambda run: b"9" * 5000,
    "list": lambda run: b"[]",
    "no test": lambda run: changed(run, ("score",), {"metric": "f1", "signature": "a"}),
    "no signature": lambda run: changed(run, ("score",), {"metric": "f1", "test": 0.5}),
    **{
        f"{'.'.join(where)} {value!r:.9}": lambda run, where=where, value=value: changed(
            run, where, value
        )
        for where in PLACES
        for value in ([1], {"a": 1}, 10**400)
    },
}


def changed(run, where, value):
    inner = run
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return json.dumps(run).encode()


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_results(case, tmp_path):
    """Red if damage ends in anything but one line with the file's name."""
    run = {"method": "ste", "steps": 3, "time": {"train_s": 1.0}, "metrics": ["f1"], "arm": "x"}
    run["score"] = {"metric": "f1", "test": 0.5, "signature": "a"}
    run["sad"] = {"total": 1, "from_start": 1, "mean_flip_rate": 0.1}
    (tmp_path / "results.json").write_bytes(DAMAGED[case](run))
    with pytest.raises(ValueError, match=r"results\.json: .*recipe") as error:
        compare([tmp_path])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage", [b"", b"\xff", b"reference\tprediction\n1\t\xff\n", b"a\tb\n1\t2\n"]
)
def test_damaged_predictions(tmp_path, damage):
    """Red if damage ends in anything but one line with the file's name."""
    (tmp_path / "predictions.tsv").write_bytes(damage)
    with pytest.raises(ValueError, match=r"predictions\.tsv: ") as error:
        read_predictions(tmp_path)
    assert "\n" not in str(error.value)


def test_results_are_written(tmp_path):
    """Red if a nested value, a list or a table of rows is lost, or a value is changed by its table."""
    results = {
        "method": "dense",
        "pattern": None,
        "score": {"test": 0.876543, "signature": "a|b"},
        "parameters": 22_713_216,
        "train_s": 12_345.6,
        "accelerators": [],
        "same": True,
        "command": "python train.py " + "--option 1 " * 20,
        "layers": [{"name": "q", "kept": 0.5}, {"name": "k", "kept": None}],
    }
    text = write_results(results, tmp_path, "A run")
    assert (tmp_path / "results.md").read_text("utf-8") == text
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == results
    heading, table, command, name, layers = text.split("\n\n")
    assert (heading, name) == ("# A run", "## layers")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines()[2:]]
    assert {row[0].strip("| "): row[1].strip("| ") for row in rows} == {
        "method": "dense",
        "pattern": "None",
        "score.test": "0.8765",
        "score.signature": "a\\|b",
        "parameters": "22713216",
        "train_s": "12,346",
        "accelerators": "none",
        "same": "True",
    }
    assert command == f"- command: `{results['command']}`"
    assert [line.split() for line in layers.splitlines()[2:]] == [
        ["|", "q", "|", "0.5", "|"],
        ["|", "k", "|", "None", "|"],
    ]

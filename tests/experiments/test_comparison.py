"""Tables of runs, of arms over tasks and seeds, and SAD curves, from made-up result folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import tensor

from hf_nm.experiments.agreement import mean_of
from hf_nm.experiments.bootstrap import Task, paired_bootstrap
from hf_nm.experiments.comparison import compare, compare_tasks, plot_arms
from hf_nm.experiments.results import read_predictions, write_predictions

SAD = {"total": 8, "from_start": 5, "mean_flip_rate": 0.03, "intervals": 2, "steps": 30}
DENSE, ASP, SRSTE = "dense", "ASP 2:4", "SR-STE 2:4 + distillation"


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table in `text`, without what aligns them."""
    lines = [line for line in text.splitlines() if line.startswith("|") and set(line) - set("|-: ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def write_run(folder, method, test, seconds, sad=None, signature="s:1", metric="BLEU"):
    score = {"metric": metric, "test": test, "signature": signature}
    run = {"method": method, "pattern": "2:4" if sad else None, "steps": 30, "score": score}
    folder.mkdir()
    run |= {"time": {"train_s": seconds}, "sad": sad}
    (folder / "results.json").write_text(json.dumps(run), "utf-8")
    return folder


def test_compare_literal(tmp_path):
    """Red if a difference has the wrong sign, recovery is turned round, or signatures are mixed."""
    dense = write_run(tmp_path / "a", "dense", 30.0, 100.0)
    sparse = write_run(tmp_path / "b", "sr-ste", 29.25, 110.0, SAD)
    text = compare([dense, sparse], tmp_path / "table.md")
    assert table_rows(text)[1:] == [
        ["a", "dense", "-", "30", "30.00", "+0.00", "100.0", "-", "-", "-", "1.00"],
        ["b", "sr-ste", "2:4", "30", "29.25", "-0.75", "97.5", "3.000e-02", "8", "5", "1.10"],
    ]
    assert (tmp_path / "table.md").read_text() == text
    assert table_rows(compare([sparse]))[1][4:8] == ["29.25", "-", "-", "3.000e-02"]
    other = write_run(tmp_path / "c", "ste", 28.0, 100.0, signature="s:2")
    with pytest.raises(ValueError, match="signatures differ"):
        compare([dense, other])
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        compare([tmp_path / "d"])


def test_compare_fractions(tmp_path):
    """Red if accuracies of 0.9012 and 0.8987 are printed as 0.90 both."""
    dense = write_run(tmp_path / "a", "dense", 0.9012, 100.0, metric="accuracy")
    sparse = write_run(tmp_path / "b", "ste", 0.8987, 100.0, SAD, metric="accuracy")
    assert table_rows(compare([dense, sparse]))[2][4:7] == ["0.8987", "-0.0025", "99.7"]
    nothing = write_run(tmp_path / "c", "dense", 0.0, 100.0, metric="accuracy")
    assert table_rows(compare([nothing, sparse]))[2][4:7] == ["0.8987", "+0.8987", "-"]


class Runs:
    """Folders of a classification recipe under `root`; every one is kept in `folders`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: list[Path] = []

    def add(self, task, arm, seed, references, predictions, metrics=("accuracy",), **changed):
        folder = self.root / str(len(self.folders))
        references, predictions = tensor(references), tensor(predictions)
        write_predictions(folder, references, predictions)
        value = mean_of(list(metrics))(predictions, references).item()
        method, pattern = ("dense", None) if arm == DENSE else (arm.split()[0].lower(), "2:4")
        run = {
            "recipe": "classification",
            "task": task,
            "arm": arm,
            "method": method,
            "pattern": pattern,
            "seed": seed,
            "steps": 30,
            "score": {"metric": metrics[0], "test": value, "signature": "split:validation"},
            "metrics": list(metrics),
            "sad": None if arm == DENSE else SAD,
            "time": {"train_s": 100.0},
        }
        for key, replaced in changed.items():
            run[key] = {**run[key], **replaced} if isinstance(replaced, dict) else replaced
        (folder / "results.json").write_text(json.dumps(run), "utf-8")
        self.folders.append(folder)
        return folder


ODD = [1, 0] * 20  # references of a task
THREE_QUARTERS = [0] * 20 + ODD[20:]  # right on 30 of 40
NINE_TENTHS = [0] * 8 + ODD[8:]  # right on 36 of 40


@pytest.fixture
def runs(tmp_path):
    """Dense right everywhere; ASP on 3/4; SR-STE on 9/10 of sst2 (3/4 with seed 1), all of rte."""
    runs = Runs(tmp_path)
    for task, usual in (("sst2", 100.0), ("rte", 200.0)):
        runs.add(task, DENSE, 0, ODD, ODD, time={"train_s": 0.9 * usual})
        runs.add(task, DENSE, 1, ODD, ODD, time={"train_s": 1.1 * usual})
        runs.add(task, ASP, 0, ODD, THREE_QUARTERS, time={"train_s": 1.5 * usual})
    runs.add("sst2", SRSTE, 0, ODD, NINE_TENTHS, sad={"mean_flip_rate": 0.01})
    runs.add("sst2", SRSTE, 1, ODD, THREE_QUARTERS, steps=15, time={"train_s": 65.0})
    runs.add("rte", SRSTE, 0, ODD, ODD, time={"train_s": 360.0})
    return runs


def cells(text: str, arm: str) -> list[list[str]]:
    """The cells of every row of `arm`, table after table."""
    return [row[1:] for row in table_rows(text) if row[0] == arm]


def test_arms_literal(runs, tmp_path):
    """Red if a mean goes over the wrong runs, or a figure lands in another's column.

    SR-STE: sst2 (36 + 30) / 2 of 40 = 82.5%; flips (0.01 + 0.03 + 0.03) / 3; times 1.0, 1.3, 1.8.
    """
    dense_last = runs.folders[2:] + runs.folders[:2]
    text = compare_tasks(dense_last, tmp_path / "t.md", resamples=50)
    assert (tmp_path / "t.md").read_text() == text
    assert table_rows(text.split("\n\n")[1]) == [
        ["arm", "seeds", "sst2", "rte", "flip rate per step", "update time vs dense"],
        ["dense", "2", "100.00", "100.00", "-", "1.00"],
        ["ASP 2:4", "1", "75.00", "75.00", "3.000e-02", "1.50"],
        [SRSTE, "1-2", "82.50", "100.00", "2.333e-02", "1.30"],
    ]
    assert "- sst2: accuracy, 40 examples, signature `split:validation`\n" in text


def test_recovery_is_the_bootstraps(runs):
    """Red if intervals are of other arms or tasks, or a difference has the wrong sign."""
    tasks = {}
    for name in ("sst2", "rte"):
        predictions = {DENSE: [ODD, ODD], ASP: [THREE_QUARTERS]}
        predictions[SRSTE] = [NINE_TENTHS, THREE_QUARTERS] if name == "sst2" else [ODD]
        as_tensors = {arm: [tensor(run) for run in own] for arm, own in predictions.items()}
        tasks[name] = Task(tensor(ODD), as_tensors, mean_of(["accuracy"]))
    found = paired_bootstrap(tasks, DENSE, resamples=300)

    def shown(interval, sign=""):
        numbers = [100 * part for part in (interval.value, interval.low, interval.high)]
        return "{:{s}.1f} [{:{s}.1f}, {:{s}.1f}]".format(*numbers, s=sign)

    text = compare_tasks(runs.folders, resamples=300, against=ASP)
    assert ["arm", "sst2", "rte", "mean", f"vs {ASP}"] in table_rows(text)
    assert cells(text, SRSTE)[1] == [
        shown(found.recovery("sst2", SRSTE)),
        "100.0 [100.0, 100.0]",
        shown(found.mean_recovery(SRSTE)),
        shown(found.difference(SRSTE, ASP), "+"),
    ]
    assert cells(text, SRSTE)[1][3].startswith("+16.2 [+")
    assert cells(text, ASP)[1][2:] == [shown(found.mean_recovery(ASP)), "-"]
    assert len(cells(text, DENSE)) == 1
    assert text.count("300 paired resamples") == 1


def test_an_arm_lacks_a_task(runs):
    """Red if a mean over fewer tasks stands beside means over all."""
    runs.folders = [path for path in runs.folders if path.name not in ("5", "8")]  # both on rte
    text = compare_tasks(runs.folders, resamples=50, against=ASP)
    assert cells(text, ASP)[0][1:3] == ["75.00", "-"]
    assert cells(text, ASP)[1][1:] == ["-", "-", "-"]
    assert cells(text, SRSTE)[1][1:] == ["-", "-", "-"]
    assert f"- {ASP} has no run on rte: its mean recovery is left out.\n" in text


def test_undefined_recovery_is_said(runs):
    """Red if a task that the dense model did not learn hides the other tasks' figures."""
    for arm in (DENSE, ASP, SRSTE):
        runs.add("cola", arm, 0, ODD, [1] * 40, metrics=("matthews_correlation",))
    text = compare_tasks(runs.folders, resamples=50)
    assert cells(text, ASP)[0][3] == "0.00"
    assert cells(text, ASP)[1][2:] == ["-", "-"]
    assert cells(text, ASP)[1][0].startswith("75.0 [")
    assert "- recovery on cola is undefined: the score of dense is 0" in text


def test_means_of_metrics_and_numbers(tmp_path):
    """Red if a task of two metrics is scored by one, or numbers are read back as classes."""
    runs = Runs(tmp_path)
    numbers = torch.rand(50, dtype=torch.float64)
    for arm, noise in ((DENSE, 0.1), (ASP, 0.2)):
        own = (numbers + noise * torch.randn(50)).tolist()
        runs.add("stsb", arm, 0, numbers.tolist(), own, metrics=("pearsonr", "spearmanr"))
        runs.add("mrpc", arm, 0, ODD, NINE_TENTHS, metrics=("accuracy", "f1"))
    text = compare_tasks(runs.folders, resamples=50)
    # 36 of 40 right, 4 of 20 positives missed: F1 = 32 / 36.
    assert cells(text, ASP)[0][2] == f"{100 * (0.9 + 32 / 36) / 2:.2f}"
    assert cells(text, ASP)[1][1] == "100.0 [100.0, 100.0]"
    assert "- stsb: mean of pearsonr and spearmanr, 50 examples" in text


def test_refused(runs):
    """Red if runs that do not belong together share a table, or the error does not say which."""

    def refused(match, *, against=None):
        with pytest.raises(ValueError, match=match):
            compare_tasks(runs.folders, resamples=5, against=against)
        runs.folders.pop()

    runs.folders.append(runs.folders[3])
    refused(r"both 'dense' on rte with seed 0")
    runs.add("rte", ASP, 7, [1, *ODD[1:-1], 1], ODD)
    refused(r"rte: .*/3/results.json and .*/9/results.json are scored on different references")
    runs.add("rte", ASP, 7, ODD, ODD, score={"signature": "split:test"})
    refused(r"rte: .*'split:validation'.*'split:test'")
    runs.add("rte", ASP, 7, ODD, ODD, metrics=("f1",))
    refused(r"rte: .*is scored as")
    runs.add("rte", ASP, 7, ODD, ODD, pattern="1:4")
    refused(r"the arm 'ASP 2:4' is \('asp', '1:4'\) here")
    runs.add("rte", ASP, 7, ODD, ODD, score={"test": 0.98})
    refused(r"the score is 0.98, but that of the predictions beside it is 1.000000")
    runs.add("rte", ASP, 7, ODD, ODD, score={"test": float("nan")})
    refused(r"the score is nan, but that of the predictions beside it is 1.000000")
    runs.add("cola", ASP, 0, ODD, ODD)
    refused(r"no dense run on cola;")
    runs.add("rte", "dense again", 7, ODD, ODD, method="dense", pattern=None)
    refused(r"exactly one arm must be dense .* are 'dense', 'dense again'")
    refused(r"'STE' is no sparse arm among 'ASP 2:4', 'SR-STE", against="STE")


def test_refused_without_what_it_needs(runs, tmp_path):
    """Red if another recipe's run, a missing file or a lone sparse run gives a table."""
    sparse = [path for path in runs.folders if path.name in ("2", "5")]
    with pytest.raises(ValueError, match=r"one arm must be dense .* sst2, rte, .* are none"):
        compare_tasks(sparse)
    with pytest.raises(ValueError, match="at least one output directory"):
        compare_tasks([])
    other = write_run(tmp_path / "translation", "dense", 30.0, 100.0)
    with pytest.raises(ValueError, match="no key task, arm, seed, metrics; this table takes runs"):
        compare_tasks([other])
    (runs.folders[0] / "predictions.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions\.tsv: no predictions here"):
        compare_tasks(runs.folders)


def test_predictions_round_trip(tmp_path):
    """Red if a float loses a digit, a class number becomes a float, or a whole float a class."""
    numbers = torch.cat([torch.randn(50, dtype=torch.float64) * 1e-7, tensor([3.0, 1e300, 5e-324])])
    write_predictions(tmp_path, torch.arange(-3, 50), numbers)
    references, predictions = read_predictions(tmp_path)
    assert references.dtype == np.int64
    assert references.tolist() == list(range(-3, 50))
    assert predictions.dtype == np.float64
    assert predictions.tolist() == numbers.tolist()
    single = torch.randn(5)
    write_predictions(tmp_path, [1.0, 2.0, 3.0, 4.0, float("nan")], single)
    references, predictions = read_predictions(tmp_path)
    assert references.dtype == np.float64
    assert np.isnan(references).tolist() == [False] * 4 + [True]
    assert predictions.tolist() == single.tolist()
    assert (tmp_path / "predictions.tsv").read_text().startswith("reference\tprediction\n1.0\t")


def test_predictions_refused(tmp_path):
    """Red if half a file is scored, or the error does not say which line."""
    for sides in (([1, 0], [1]), ([], [])):
        with pytest.raises(ValueError, match="every example needs a reference and a prediction"):
            write_predictions(tmp_path, *sides)
    with pytest.raises(TypeError, match=r"but got list: give \[examples\]"):
        write_predictions(tmp_path, [1, 0], torch.ones(2, 2))
    path = tmp_path / "predictions.tsv"
    for text in ("1\t1\n", "reference\tprediction\n", "reference\tprediction\n1\t1\n0\t"):
        path.write_text(text)
        with pytest.raises(ValueError, match="needs the header"):
            read_predictions(tmp_path)
    for line in ("1", "1\t1\t1", "1\tyes", ""):
        path.write_text(f"reference\tprediction\n1\t1\n{line}\n")
        with pytest.raises(ValueError, match=rf"predictions\.tsv, line 3: '{line[:1]}"):
            read_predictions(tmp_path)


def test_plot_arms(tmp_path):
    """Red if a log without flips, or a run of them alone, breaks the logarithmic scale."""

    def trained(name, rates):
        history = [{"step": i, "nm/flip_rate": rate} for i, rate in enumerate(rates, 1)]
        (tmp_path / name).mkdir()
        state = json.dumps({"log_history": [*history, {"step": 9, "eval_loss": 1.0}]})
        (tmp_path / name / "trainer_state.json").write_text(state)
        return tmp_path / name

    arms = {"SR-STE": trained("a", [0.1, 0.0, 1e-4]), "ASP": trained("b", [0.0, 0.0])}
    picture = tmp_path / "arms.png"
    for chosen in (arms, {"ASP": arms["ASP"]}):
        plot_arms(chosen, picture, "2:4")
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", picture.read_bytes()[16:24]) == (960, 540)
    with pytest.raises(ValueError, match=r"dense: no nm/flip_rate .* leave dense runs out"):
        plot_arms({**arms, "dense": trained("dense", [])}, picture)
    with pytest.raises(ValueError, match="at least one run"):
        plot_arms({}, picture)

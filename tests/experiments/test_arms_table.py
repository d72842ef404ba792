"""The table of arms and its lines, from made-up folders; their numbers worked out by hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import sacrebleu
from arms import LOG, SIGNATURE, corpus_bleu, left, sentences, two_seeds
from sacrebleu.significance import PairedTest
from test_comparison import table_rows

from hf_nm.experiments.arms.finished import FinishedRun, read_finished
from hf_nm.experiments.arms.report import write_comparison
from hf_nm.experiments.arms.sentences import bleu, counts, options_of, task_of
from hf_nm.experiments.arms.table import resampled, rows_of, without_places
from hf_nm.experiments.bootstrap import paired_bootstrap
from hf_nm.experiments.earlier_runs import difference_to_dense
from hf_nm.experiments.results import write_predictions
from hf_nm.hub.scores import read_scores


def test_numbers_by_hand(tmp_path: Path) -> None:
    """Red if a mean, a spread, a difference, a ratio or a budget is another: all are worked out by hand.

    Dense: (30 + 32) / 2 = 31, deviation sqrt(2). SR-STE less dense: 29.5 - 31; less STE by the one seed
    that both have: 29 - 28. STE less dense, seed 1: 28 - 30. Update time of dense: (100 + 300) / 2 / 40
    = 5 s; of STE 220 / 40 = 5.5 s; of ASP (30 + 130) / (10 + 30) = 4 s.
    """
    write_comparison(two_seeds(tmp_path), tmp_path / "out", LOG)
    text = (tmp_path / "out" / "results.md").read_text("utf-8")
    header, *rows = table_rows(text.split("## Each run")[0])
    assert header == [
        *("arm", "updates", "seeds", "BLEU", "less dense", "less STE", "SAD"),
        *("flips per weight and step", "update time / dense", "N:M weights kept"),
    ]
    half = "64 of 128 (50.0%)"
    sr_ste = ["SR-STE 2:4, decay 2e-4", "40", "1, 2", "29.50 ± 0.71", "-1.50", "+1.00 (seeds 1)"]
    assert rows == [
        ["dense", "40", "1, 2", "31.00 ± 1.41", "-", "-", "-", "-", "1.00", "all"],
        ["ASP 2:4", "10 + 30", "1", "27.00", "-3.00", "-1.00", "0", "0.00e+00", "0.80", half],
        ["STE 2:4", "40", "1", "28.00", "-2.00", "-", "50", "5.00e-02", "1.10", half],
        [*sr_ste, "20", "1.50e-02", "0.50", half],
    ]


def test_times_that_nobody_counted(tmp_path: Path) -> None:
    """Red if the time of a resumed run's last part is taken for that of all its updates.

    Runs before `time.steps` was written counted from the last resumption on.
    """
    folders = two_seeds(tmp_path)
    facts = json.loads((tmp_path / "d2" / "results.json").read_text())
    facts["time"] = {"train_s": 3.0}
    facts["command"] += " --resume_from_checkpoint True"
    (tmp_path / "d2" / "results.json").write_text(json.dumps(facts))
    rows = {row.arm: row for row in rows_of(read_finished(folders, LOG), None)}
    assert rows["STE 2:4"].time == pytest.approx(5.5 / 2.5)  # of the dense run of seed 1 alone


def test_times_left_out(tmp_path: Path) -> None:
    """Red if times of a machine with other work are shown although nobody wants them."""
    write_comparison(two_seeds(tmp_path), tmp_path / "out", LOG, times=False, notes=["Mark this."])
    text = (tmp_path / "out" / "results.md").read_text("utf-8")
    assert "update time" not in text
    assert "ms per update" not in text
    assert "\nMark this.\n" in text


def test_parts_are_no_arm(tmp_path: Path) -> None:
    """Red if ASP's dense half is averaged into the dense arm."""
    runs = read_finished(two_seeds(tmp_path), LOG)
    assert "half" not in {run.name for run in runs}
    (asp,) = (run for run in runs if run.method == "fixed")
    assert asp.before is not None
    assert (asp.before.name, asp.updates) == ("half", (10, 30))
    # Also where the part's folder was not named.
    (alone,) = read_finished([tmp_path / "asp1"], LOG)
    assert alone.before is not None


def test_what_does_not_belong_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Red if runs of other data, of another signature, or one run twice come into one table."""
    folders = two_seeds(tmp_path)
    twice = left(tmp_path / "again", "ste", 1, score=28.5, pattern="2:4")
    with pytest.raises(ValueError, match=r"ste1 and .*again are both STE 2:4, seed 1"):
        read_finished([*folders, twice], LOG)
    other = left(tmp_path / "other", "ste", 2, score=28.5, pattern="2:4", data="more files")
    with pytest.raises(ValueError, match="data of"):
        read_finished([*folders, other], LOG)
    signed = {"metric": "BLEU", "test": 1.0, "signature": "s"}
    other = left(tmp_path / "signed", "ste", 2, pattern="2:4", score=1.0)
    facts = json.loads((other / "results.json").read_text()) | {"score": signed}
    (other / "results.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="signature of"):
        read_finished([*folders, other], LOG)
    with pytest.raises(ValueError, match="no finished run among 1 folders"):
        read_finished([tmp_path / "logs"], LOG)
    with caplog.at_level(logging.INFO, "recipe"):
        assert len(read_finished([folders[0], tmp_path / "logs"], LOG)) == 1
    assert "logs: no results.json, left out" in caplog.text


def test_bleu_of_counts() -> None:
    """Red if the sums of the sentences' counts give another BLEU than sacreBLEU's own of the corpus."""
    translations, references = sentences(3, 0.4)
    translations[5] = ""
    table = counts(translations, references, **options_of(SIGNATURE))
    assert table.shape == (60, 10)
    assert bleu(table.sum(0), "exp").item() == pytest.approx(corpus_bleu(translations, references))
    short = ["the park"], ["the park in it"]  # no trigram: smoothed
    assert bleu(counts(*short).sum(0), "exp").item() == corpus_bleu(*short)
    lower = options_of(SIGNATURE.replace("mixed", "lc"))
    assert counts(["The Park"], ["the park"], **lower)[0, 0] == 2
    assert counts(["The Park"], ["the park"])[0, 0] == 0


@pytest.mark.parametrize(
    "signature", [None, "rows:408", SIGNATURE.replace("nrefs:1", "nrefs:2"), "nrefs:1|tok:13a"]
)
def test_signatures_of_something_else(signature: str | None) -> None:
    with pytest.raises(ValueError, match="no interval"):
        options_of(signature)


def test_interval_as_sacrebleu_has_it(tmp_path: Path) -> None:
    """Red if sentences are not drawn for both arms alike, or not with replacement.

    sacreBLEU's own paired bootstrap gives, for each system, the half width of its 95% interval of BLEU;
    the draws are others. Of two systems with the same errors in the same sentences the difference is the
    same in every resample, which unpaired draws would spread over several points.
    """
    first, second = (left(tmp_path / f"d{seed}", "dense", seed, wrong=0.3) for seed in (1, 2))
    runs = {
        path.name: (path, json.loads((path / "results.json").read_text()))
        for path in (first, second)
    }
    found = paired_bootstrap({"test": task_of(runs)}, "d1", resamples=2000)
    systems = [(name, sentences(seed, 0.3)[0]) for name, seed in (("d1", 1), ("d2", 2))]
    metrics = {"BLEU": sacrebleu.BLEU(references=[sentences(1, 0.3)[1]])}
    _, theirs = PairedTest(systems, metrics, [sentences(1, 0.3)[1]], "bs", n_samples=2000)()
    for name, result in zip(("d1", "d2"), theirs["BLEU"], strict=True):
        ours = found.score("test", name)
        assert ours.value == pytest.approx(result.score)
        assert (ours.high - ours.low) / 2 == pytest.approx(result.ci, rel=0.15)
    same = {"a": runs["d1"], "b": runs["d1"]}
    gap = paired_bootstrap({"test": task_of(same)}, "a", resamples=50).gap("test", ["a"], ["b"])
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_gap_is_that_of_the_means(tmp_path: Path) -> None:
    """Red if a difference is turned round, or means are not taken over each arm's own seeds."""
    runs = [
        FinishedRun(path, json.loads((path / "results.json").read_text()))
        for path in (
            left(tmp_path / "d1", "dense", 1, wrong=0.2),
            left(tmp_path / "d2", "dense", 2, wrong=0.25),
            left(tmp_path / "s1", "ste", 1, wrong=0.5, pattern="2:4"),
            left(tmp_path / "s2", "ste", 2, wrong=0.6, pattern="2:4"),
        )
    ]
    found, said = resampled(runs, 200)
    assert "200 paired resamples of the 60 test examples" in said
    difference = rows_of(runs, found)[1].to_dense
    assert difference is not None
    expected = (runs[2].score + runs[3].score - runs[0].score - runs[1].score) / 2
    assert difference.value == pytest.approx(expected)
    assert difference.interval is not None
    assert difference.interval.value == pytest.approx(expected)
    assert difference.interval.low < expected < difference.interval.high < 0


def test_translations_of_another_run(tmp_path: Path) -> None:
    """Red if an interval is made of translations that do not have the score beside them."""
    folder = left(tmp_path / "d1", "dense", 1, wrong=0.2)
    facts = json.loads((folder / "results.json").read_text())
    facts["score"]["test"] += 0.5
    with pytest.raises(ValueError, match="of different runs"):
        task_of({"d1": (folder, facts)})


def test_classes_are_resampled_too(tmp_path: Path) -> None:
    """Red if a recipe of classes gets no interval, or its fractions are shown as 0.75."""
    references = [0, 1, 1, 0] * 10
    folders = []
    for name, wrong in (("dense", 4), ("ste", 10)):
        predicted = [1 - label if at < wrong else label for at, label in enumerate(references)]
        pattern = None if name == "dense" else "2:4"
        score = 1 - wrong / 40
        folders.append(
            left(tmp_path / name, name, 1, score=score, pattern=pattern, metrics=["accuracy"])
        )
        write_predictions(folders[-1], references, predicted)
    text = write_comparison(folders, tmp_path / "out", LOG, resamples=100)
    row = dict(zip(*[table_rows(text)[at] for at in (0, 2)], strict=True))
    assert row["BLEU x 100"] == "75.00"
    assert row["less dense"].startswith("-15.00 [-")


def test_beside_the_dense_run(tmp_path: Path) -> None:
    """Red if the card's interval is another than the table's, or is lost on the way to a later push."""
    dense = left(tmp_path / "d", "dense", 1, wrong=0.2)
    ste = left(tmp_path / "s", "ste", 1, wrong=0.5, pattern="2:4")
    facts = json.loads((ste / "results.json").read_text())
    said = difference_to_dense(ste, facts, str(dense), LOG)
    (ste / "results.json").write_text(json.dumps(facts | {"vs_dense": said}))
    write_comparison([dense, ste], tmp_path / "out", LOG)
    row = json.loads((tmp_path / "out" / "table.json").read_text())["rows"][1]["less_dense"]
    assert said["difference"] == row["value"]
    assert {"low": said["low"], "high": said["high"]} == row["interval"]
    expected = (said["low"], said["high"])
    for score in (read_scores(ste, dense)[0], read_scores(ste)[0]):
        assert score.interval == expected
        assert score.dense == json.loads((dense / "results.json").read_text())["score"]["test"]
    other = left(tmp_path / "d2", "dense", 2, wrong=0.3)
    assert read_scores(ste, other)[0].interval is None  # of another dense run


def test_beside_a_dense_run_without_predictions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Red if a trained run is lost because its dense run is an older version's."""
    dense = left(tmp_path / "d", "dense", 1, score=30.0)
    ste = left(tmp_path / "s", "ste", 1, wrong=0.5, pattern="2:4")
    facts = json.loads((ste / "results.json").read_text())
    with caplog.at_level(logging.INFO, "recipe"):
        said = difference_to_dense(ste, facts, str(dense), LOG)
    assert (said["score"], said["low"], said["high"]) == (30.0, None, None)
    assert "no interval" in caplog.text
    (ste / "results.json").write_text(json.dumps(facts | {"vs_dense": said}))
    (score,) = read_scores(ste)
    assert (score.dense, score.interval) == (30.0, None)


def test_without_predictions(tmp_path: Path) -> None:
    """Red if runs that kept nothing to resample end in an error, or get an interval all the same."""
    text = write_comparison(two_seeds(tmp_path), tmp_path / "out", LOG)
    assert "No intervals: " in text
    assert "[" not in text.split("No intervals")[0]


def test_lines_of_runs(tmp_path: Path) -> None:
    """Red if a run's command, commit or ASP's first half is lost, or a machine's folders are told."""
    write_comparison(two_seeds(tmp_path), tmp_path / "out", LOG, commit="abc1234", data="Toy")
    lines = (tmp_path / "out" / "runs.jsonl").read_text("utf-8").splitlines()
    runs = {run["run"]: run for run in map(json.loads, lines)}
    assert set(runs) == {"d1", "d2", "sr1", "sr2", "ste1", "asp1"}
    assert {run["commit"] for run in runs.values()} == {"abc1234"}
    assert {run["data"] for run in runs.values()} == {"Toy"}
    assert runs["sr2"]["score"]["test"] == 30.0
    assert runs["ste1"]["command"] == (
        "python recipes/translation/train.py --seed 1 --output_dir ste1"
    )
    assert runs["asp1"]["command_before"].endswith("--output_dir half")
    assert runs["asp1"]["steps_before"] == 10
    assert str(tmp_path) not in "".join(lines)
    assert str(tmp_path) not in (tmp_path / "out" / "results.md").read_text("utf-8")


def test_commands_without_places() -> None:
    assert without_places(
        "python /x/recipes/translation/train.py /x/recipes/translation/configs/local.yaml "
        "--train_files /data/train.en.gz train.de.gz --n 2"
    ) == (
        "python recipes/translation/train.py recipes/translation/configs/local.yaml "
        "--train_files train.en.gz train.de.gz --n 2"
    )

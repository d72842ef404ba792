"""What recipes share about results: SAD in sum, the plot, the comparison."""

import json

import pytest

from hf_nm.results import compare, plot_sad, sad_summary

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


def test_compare_literal(tmp_path):
    """Red if a difference has the wrong sign or scores of other signatures are mixed in."""

    def write(name, method, bleu, seconds, sad=None, signature="s:1"):
        score = {"metric": "BLEU", "test": bleu, "signature": signature}
        run = {"method": method, "pattern": "2:4" if sad else None, "steps": 30, "score": score}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(
            json.dumps({**run, "time": {"train_s": seconds}, "sad": sad})
        )
        return tmp_path / name

    dense = write("a", "dense", 30.0, 100.0)
    sparse = write("b", "sr-ste", 29.25, 110.0, sad_summary(HISTORY))
    table = compare([dense, sparse], tmp_path / "table.md").splitlines()
    assert table[2] == "| a | dense | - | 30 | 30.00 | +0.00 | - | - | - | 1.00 |"
    assert table[3] == "| b | sr-ste | 2:4 | 30 | 29.25 | -0.75 | 3.000e-02 | 8 | 5 | 1.10 |"
    assert (tmp_path / "table.md").read_text().splitlines() == table
    other = write("c", "ste", 28.0, 100.0, signature="s:2")
    with pytest.raises(ValueError, match="signatures differ"):
        compare([dense, other])
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        compare([tmp_path / "d"])

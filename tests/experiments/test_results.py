"""What recipes share about results: SAD in sum, the plot."""

import pytest

from hf_nm.hub.figures import plot_sad
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

"""`compare` whole: killed in the middle of a run, gone on with, skipped, refused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock
from launching import run_python, running
from recipe_loading import TRANSLATION, importing

with importing("translation"):
    from corpus import embedded_corpus

SIZES = "--d_model 16 --ffn_dim 32 --layers 1 --heads 2 --vocab_size 400 --num_beams 1"
SIZES += " --max_tokens 256 --max_steps 40 --logging_steps 5 --eval_steps 20 --warmup_steps 3"
SIZES += " --save_strategy steps --save_steps 5 --save_total_limit 2"
SCRIPT = TRANSLATION / "compare.py"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A comparison of ASP and SR-STE on 48 sentences, 40 updates each."""
    folder = tmp_path_factory.mktemp("toy")
    options = []
    for split, count in {"train": 48, "validation": 6, "test": 5}.items():
        pairs = embedded_corpus().splits[split][:count]
        for side, language in enumerate(("en", "de")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text, "utf-8")
        options += [f"--{split}_files", f"{folder}/{split}.en", f"{folder}/{split}.de"]
    config = str(TRANSLATION / "configs" / "embedded.yaml")
    arms = "--methods dense asp sr-ste --patterns 2:4 --decays 0.01 --seeds 3 --jobs 1"
    return [config, *options, *SIZES.split(), *arms.split()]


def killed_at_a_checkpoint(command: list[str], out: Path, run: str) -> str:
    """Start a comparison and end it once a run has saved; what it said."""
    with running(SCRIPT, *command, "--out", out) as compare:
        while not list((out / run).glob("checkpoint-*/trainer_state.json")):
            assert compare.poll() is None, compare.stderr.read()
            time.sleep(0.02)
        compare.send_signal(signal.SIGTERM)
        said, wrong = compare.communicate(timeout=600)
        assert compare.returncode == 128 + signal.SIGTERM, wrong.decode()[-3000:]
    return said.decode()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends signals as POSIX has them")
def test_killed_and_gone_on_with(command: list[str], tmp_path: Path) -> None:
    """Red if a killed comparison begins its runs again, runs what is finished, gives ASP another budget,
    or takes runs of other options for its own."""
    out = tmp_path / "out"
    said = killed_at_a_checkpoint(command, out, "asp-dense-3")
    assert "dense-3: started" in said
    assert "asp-2x4-3: started" not in said
    assert not (out / "asp-dense-3" / "results.json").is_file()
    before = (out / "dense-3" / "results.json").read_bytes()
    assert not list((out / "dense-3").glob("checkpoint-*"))  # of a finished run

    said = run_python(SCRIPT, *command, "--out", out).stdout
    assert "4 runs, 1 of them finished" in said
    assert (out / "dense-3" / "results.json").read_bytes() == before
    results = {
        path.parent.name: json.loads(path.read_text()) for path in out.glob("*/results.json")
    }
    assert "--resume_from_checkpoint True" in results["asp-dense-3"]["command"]
    steps = {name: (run["steps"], run["steps_before"]) for name, run in results.items()}
    assert steps == {
        "dense-3": (40, None),
        "asp-dense-3": (20, None),
        "asp-2x4-3": (20, 20),
        "sr-ste-2x4-1e-2-3": (40, None),
    }
    assert results["asp-2x4-3"]["sad"]["total"] == 0
    assert results["asp-2x4-3"]["model"]["nm_weights_kept"] > 0
    logged = json.loads((out / "asp-2x4-3" / "trainer_state.json").read_text())["log_history"]
    rates = {row["step"]: row["learning_rate"] for row in logged if "learning_rate" in row}
    dense = json.loads((out / "dense-3" / "trainer_state.json").read_text())["log_history"]
    again = {row["step"]: row["learning_rate"] for row in dense if "learning_rate" in row}
    assert rates == {step: rate for step, rate in again.items() if step <= 20}  # restarted

    said = run_python(SCRIPT, *command, "--out", out).stdout
    assert "4 runs, 4 of them finished" in said
    assert "started" not in said
    with pytest.raises(AssertionError, match=r"this run began with --learning_rate"):
        run_python(SCRIPT, *command, "--learning_rate", "0.5", "--out", out)


def test_two_comparisons_in_one_folder(command: list[str], tmp_path: Path) -> None:
    """Red if a second comparison trains beside the first, or its error is a traceback."""
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / "_compare.lock"), pytest.raises(AssertionError) as error:
        run_python(SCRIPT, *command, "--out", tmp_path / "out")
    assert "another comparison runs here" in str(error.value)
    assert "Traceback" not in str(error.value)

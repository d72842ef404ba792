"""Which runs a comparison takes, how ASP's updates are divided, what a machine takes at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_nm.experiments.arms import machine
from hf_nm.experiments.arms.plan import divided, plan, refuse_decided, spelled

OUT = Path("/somewhere/out")


def test_runs_of_a_plan() -> None:
    """Red if an arm, a pattern, a decay or a seed is left out, or one run stands for two."""
    runs = plan(["dense", "asp", "ste", "sr-ste"], ["2:4", "1:8"], ["2e-4", "0.002"], [1, 2], OUT)
    assert [run.name for run in runs if run.name.endswith("-1")] == [
        "dense-1",
        "asp-dense-1",
        "asp-2x4-1",
        "asp-1x8-1",
        "ste-2x4-1",
        "ste-1x8-1",
        "sr-ste-2x4-2e-4-1",
        "sr-ste-2x4-2e-3-1",
        "sr-ste-1x8-2e-4-1",
        "sr-ste-1x8-2e-3-1",
    ]
    assert len({run.name for run in runs}) == len(runs) == 20
    assert [run.name for run in runs if not run.in_table] == ["asp-dense-1", "asp-dense-2"]
    options = {run.name: " ".join(run.options) for run in runs}
    assert options["dense-2"] == "--method dense --seed 2"
    assert options["ste-1x8-1"] == "--method ste --n 1 --m 8 --seed 1"
    assert options["sr-ste-2x4-2e-3-2"] == "--method sr-ste --decay 0.002 --n 2 --m 4 --seed 2"


def test_asp_starts_from_its_dense_part() -> None:
    """Red if ASP is pruned before it has been trained, or its two parts have other lengths."""
    lengths = divided(max_steps=7, epochs=3.0, share=0.5)
    first, second, third = plan(["asp"], ["2:4", "1:4"], [], [5], OUT, lengths, ["--start"])
    assert (first.name, first.after) == ("asp-dense-5", None)
    assert second.after == third.after == "asp-dense-5"
    assert " ".join(first.options) == "--method dense --max_steps 4 --seed 5"
    assert " ".join(second.options) == (
        f"--method fixed --start {OUT}/asp-dense-5 --max_steps 3 --n 2 --m 4 --seed 5"
    )


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(2000, 0.5, (1000, 1000)), (2000, 0.25, (500, 1500)), (7, 0.5, (4, 3)), (3, 0.4, (1, 2))],
)
def test_updates_of_asp_add_up(steps: int, share: float, expected: tuple[int, int]) -> None:
    """Red if ASP gets more or fewer updates than the others, or the share is the sparse part's."""
    parts = divided(steps, 3.0, share)
    assert [part[0] for part in parts] == ["--max_steps", "--max_steps"]
    assert tuple(int(part[1]) for part in parts) == expected
    assert sum(expected) == steps


def test_epochs_of_asp_add_up() -> None:
    """Red if epochs, which decide where there are no `max_steps`, are not divided."""
    dense, sparse = divided(-1, 3.0, 0.25)
    assert dense == ["--num_train_epochs", "0.75"]
    assert sparse == ["--num_train_epochs", "2.25"]


def test_what_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="leaves 0 dense and 3 sparse"):
        divided(3, 1.0, 0.1)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            divided(100, 1.0, share)


def test_plans_that_are_none() -> None:
    """Red if a misspelled method is left out silently, or a run is to be made twice."""
    with pytest.raises(ValueError, match="--methods srste: give some of dense, asp, ste, sr-ste"):
        plan(["dense", "srste"], ["2:4"], ["2e-4"], [1], OUT)
    with pytest.raises(ValueError, match=r"--decays 2e-4 0\.0002: one is there twice"):
        plan(["sr-ste"], ["2:4"], ["2e-4", "0.0002"], [1], OUT)
    with pytest.raises(ValueError, match="--patterns is empty"):
        plan(["ste"], [], [], [1], OUT)
    with pytest.raises(ValueError, match="n:m"):
        plan(["ste"], ["24"], [], [1], OUT)
    assert len(plan(["dense"], [], [], [1], OUT)) == 1
    with pytest.raises(ValueError, match=r"--seed is set for each run; give --seeds"):
        refuse_decided(["a.yaml", "--max_steps", "3", "--seed=4"])
    refuse_decided(["--seed_everything", "--learning_rate", "1"])


@pytest.mark.parametrize(
    ("decay", "name"),
    [("2e-4", "2e-4"), (0.0002, "2e-4"), ("0", "0"), ("0.25", "2.5e-1"), ("auto", "auto")],
)
def test_decays_in_names(decay: object, name: str) -> None:
    assert spelled(decay) == name


def test_no_more_runs_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if runs and their threads together are more than the machine's cores, or a comparison that
    is gone on with has other threads."""
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for jobs in range(1, 9):
        found = machine.slots(jobs, 3)
        assert len(found) == jobs
        assert sum(slot.threads for slot in found) <= 8
    assert [slot.threads for slot in machine.slots(3, 20)] == [2, 2, 2]
    for jobs in (0, 9):
        with pytest.raises(ValueError, match=f"--jobs {jobs}: this machine has 8 cores"):
            machine.slots(jobs, 20)
    assert machine.slots(1, 1)[0].environment == {"OMP_NUM_THREADS": "8"}
    assert [slot.threads for slot in machine.slots(None, 20)] == [1] * 8
    assert [slot.threads for slot in machine.slots(None, 3)] == [2] * 3


def test_threads_that_the_user_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if OMP_NUM_THREADS does not say how many runs fit, or is exceeded."""
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [slot.threads for slot in machine.slots(None, 20)] == [2] * 4
    assert len(machine.slots(None, 3)) == 3
    assert [slot.threads for slot in machine.slots(2, 20)] == [2, 2]
    assert [slot.threads for slot in machine.slots(8, 20)] == [1] * 8


def test_a_gpu_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if two runs share a GPU, or one of those is taken that the user has hidden."""
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = [slot.environment for slot in machine.slots(None, 9)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["5", "7"]
    assert [each["OMP_NUM_THREADS"] for each in found] == ["3", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.slots(None, 9)[1].environment["CUDA_VISIBLE_DEVICES"] == "1"
    with pytest.raises(ValueError, match="2 GPUs"):
        machine.slots(3, 9)


def test_cores_are_those_of_this_process() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert machine.cores() == len(os.sched_getaffinity(0))

"""Which runs a comparison of arms takes, and what each is started with.

An arm is a method with its pattern and decay; every arm is run once for each seed. All have the same
budget of updates. ASP's is divided: a dense run, its magnitude masks, and a second training of what
they leave, with the learning rate's schedule from its beginning. One dense part serves all patterns of a
seed.

Source:
    Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv 2104.08378), section 3.2: train a
    dense network, prune it to 2:4 by magnitude, and repeat the training with the same schedule and
    hyper-parameters, so half of all updates are dense.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_nm.sparsity.pattern import NMPattern

ARMS = ("dense", "asp", "ste", "sr-ste")
# What the plan decides, so that no option may say it for all runs.
DECIDED = {
    "method": "--methods",
    "n": "--patterns",
    "m": "--patterns",
    "decay": "--decays",
    "seed": "--seeds",
    "output_dir": "--out",
    "resume_from_checkpoint": "nothing: unfinished runs are resumed",
    "start_over": "nothing: remove the folder of a run that is to begin again",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of the recipe.

    Args:
        name: of its folder.
        options: for the recipe's command line, after those that all runs have.
        after: the run whose model it starts from.
        in_table: whether it is an arm's run; a part of one is not.
    """

    name: str
    options: tuple[str, ...]
    after: str | None = None
    in_table: bool = True


def plan(
    methods: Sequence[str],
    patterns: Sequence[str],
    decays: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    asp_lengths: tuple[Sequence[str], Sequence[str]] = ((), ()),
    from_run: Sequence[str] = ("--model_name_or_path",),
) -> list[PlannedRun]:
    """The runs, in the order in which they are started: seed by seed, dense first.

    Args:
        methods: of :data:`ARMS`.
        patterns: such as ``["2:4", "1:8"]``, for every method but the dense one.
        decays: for SR-STE, as they are typed.
        seeds: one run of each arm for each.
        out: where the runs' folders lie.
        asp_lengths: options that say how long ASP's dense and its sparse part are, from
            :func:`divided`.
        from_run: options before the folder of a run, to start from its model.

    Raises:
        ValueError: an unknown method, a pattern that is none, or something that is there twice or not
            at all.
    """
    unknown = [method for method in methods if method not in ARMS]
    if unknown:
        raise ValueError(f"--methods {unknown[0]}: give some of {', '.join(ARMS)}.")
    named = {"methods": methods, "patterns": patterns, "decays": decays, "seeds": seeds}
    for option, values in named.items():
        needed = option in ("methods", "seeds") or any(
            method == "sr-ste" or (method != "dense" and option == "patterns") for method in methods
        )
        if needed and not values:
            raise ValueError(f"--{option} is empty; give at least one.")
        keys = [spelled(value) if option == "decays" else str(value) for value in values]
        if len(set(keys)) < len(keys):
            raise ValueError(f"--{option} {' '.join(map(str, values))}: one is there twice.")
    found: dict[str, PlannedRun] = {}

    def add(name: str, *options: object, after: str | None = None, in_table: bool = True) -> None:
        found.setdefault(name, PlannedRun(name, tuple(map(str, options)), after, in_table))

    for seed in seeds:
        seeded = ("--seed", seed)
        if "dense" in methods:
            add(f"dense-{seed}", "--method", "dense", *seeded)
        for method in (method for method in methods if method != "dense"):
            for pattern in map(NMPattern.parse, patterns):
                sparse = ("--n", pattern.n, "--m", pattern.m, *seeded)
                name = f"{method}-{pattern.n}x{pattern.m}"
                if method == "ste":
                    add(f"{name}-{seed}", "--method", "ste", *sparse)
                elif method == "sr-ste":
                    for decay in decays:
                        decayed = f"{name}-{spelled(decay)}-{seed}"
                        add(decayed, "--method", "sr-ste", "--decay", decay, *sparse)
                else:
                    dense = f"asp-dense-{seed}"
                    dense_length, sparse_length = asp_lengths
                    add(dense, "--method", "dense", *dense_length, *seeded, in_table=False)
                    start = (*from_run, (out / dense).absolute(), *sparse_length)
                    add(f"{name}-{seed}", "--method", "fixed", *start, *sparse, after=dense)
    return list(found.values())


def divided(max_steps: int, epochs: float, share: float) -> tuple[list[str], list[str]]:
    """How long ASP's two parts are, as options; together as long as every other arm.

    Args:
        max_steps: updates of every other arm; not above 0 where `epochs` says how long they are. Updates
            come out exactly; with epochs each part's last begun update is a whole one, so that the
            two may have one update more.
        epochs: of every other arm.
        share: of the updates that are dense, between 0 and 1.

    Returns:
        Options of the dense and of the sparse part.

    Raises:
        ValueError: one of the parts would have no update.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"--asp_dense_share is {share:g}; it must lie between 0 and 1, both left out: a part is "
            "dense, the rest sparse."
        )
    if max_steps <= 0:
        return (
            ["--num_train_epochs", repr(epochs * share)],
            ["--num_train_epochs", repr(epochs - epochs * share)],
        )
    dense = round(max_steps * share)
    if not 0 < dense < max_steps:
        raise ValueError(
            f"--asp_dense_share {share:g} of {max_steps} updates leaves {dense} dense and "
            f"{max_steps - dense} sparse ones; both need at least one."
        )
    return ["--max_steps", str(dense)], ["--max_steps", str(max_steps - dense)]


def refuse_decided(options: Sequence[str]) -> None:
    """Raise for an option of the recipe that the plan sets.

    Raises:
        ValueError: there is one; what to give instead is named.
    """
    for option in options:
        name = option.lstrip("-").split("=")[0]
        if option.startswith("--") and name in DECIDED:
            raise ValueError(
                f"--{name} is set for each run; give {DECIDED[name]} to compare, in its place."
            )


def spelled(decay: object) -> str:
    """A decay as names have it: ``0.0002`` and ``2e-4`` are both ``2e-4``; words stay as they are."""
    try:
        mantissa, exponent = f"{float(str(decay)):.9e}".split("e")
    except ValueError:
        return re.sub(r"[^\w.-]+", "-", str(decay))
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}" if mantissa != "0" else "0"

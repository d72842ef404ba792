"""Which pairs of frames have which flow: FlyingChairs, MPI Sintel, or the embedded moving textures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import textures
from flow_file import FlowError, read_flow
from images import ImageError, open_image
from sources import SPLITS

PASSES = ("clean", "final")  # of MPI Sintel's frames
Pair = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames of a split, not opened yet.

    Args:
        names: of each what to call it in a message.
        read: opens the pair with a number: two frames, uint8 ``[height, width, 3]``, and the flow,
            float32 ``[height, width, 2]`` in pixels, NaN where unknown.
    """

    names: Sequence[str]
    read: Callable[[int], Pair]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int, at_least: tuple[int, int] = (1, 1)) -> Pair:
        """A pair and its flow.

        Args:
            number: which.
            at_least: height and width that the frames must reach.

        Raises:
            ImageError: a file cannot be read, sizes differ, the frames are too small, or no flow of
                the pair is known: one line.
        """
        try:
            first, second, flow = self.read(number)
        except FlowError as error:
            raise ImageError(str(error)) from error
        if not first.shape == second.shape == (*flow.shape[:2], 3):
            sizes = ", ".join(f"{w} x {h}" for h, w, _ in (first.shape, second.shape, flow.shape))
            raise ImageError(
                f"{self.names[number]}: both frames and the flow must be of one size, but are {sizes}; "
                "mend it, or take it out."
            )
        (height, width), (high, wide) = flow.shape[:2], at_least
        if height < high or width < wide:
            raise ImageError(
                f"{self.names[number]}: {width} x {height} pixels, but the model sees {wide} x {high}; "
                f"take it out, or train with a smaller train_size in --config_overrides."
            )
        if np.isnan(flow).all():
            raise ImageError(f"{self.names[number]}: no flow in it is known; take it out.")
        return first, second, flow

    def part(self, numbers: Sequence[int] | np.ndarray) -> "Pairs":
        """Some of these pairs."""
        chosen = [int(number) for number in numbers]
        return Pairs([self.names[i] for i in chosen], lambda number: self.read(chosen[number]))


@dataclass(frozen=True)
class FlowData:
    """Pairs ready to be learned from.

    Args:
        splits: train, validation and test.
        task: what the data is called.
        test: what is scored, in words.
    """

    splits: dict[str, Pairs]
    task: str
    test: str


def load_pairs(
    data: dict[str, str | None],
    *,
    task: str | None = None,
    render: str = "clean",
    validation_rows: int = 64,
) -> FlowData:
    """Pairs of frames with their flow: local ones if there are any, else the embedded textures.

    Args:
        data: for train, validation (may be None) and test a folder.
        task: what to call it.
        render: which frames of MPI Sintel, one of :data:`PASSES`.
        validation_rows: taken out of the training pairs where there is no validation split.

    Raises:
        ValueError, OSError: there is no such data, or something in it is wrong: one line.
    """
    if not any(data.values()):
        return FlowData({split: _embedded(split) for split in SPLITS}, task or "textures", "test")
    for split in ("train", "test"):
        if not data[split]:
            raise ValueError(f"no --{split}_data; local data needs --train_data and --test_data.")
    given = {split: str(path) for split, path in data.items() if path}
    splits = {split: read_pairs(path, render) for split, path in given.items()}
    if "validation" not in splits:
        count = len(splits["train"])
        if not 0 < validation_rows < count:
            raise ValueError(
                f"--validation_rows is {validation_rows}, but must leave something of the {count} "
                "training pairs; or give --validation_data."
            )
        order = np.random.default_rng(0).permutation(count)
        splits["validation"] = splits["train"].part(np.sort(order[:validation_rows]))
        splits["train"] = splits["train"].part(np.sort(order[validation_rows:]))
    train, test = (Path(given[split]).resolve() for split in ("train", "test"))
    ordered = {split: splits[split] for split in SPLITS}
    return FlowData(ordered, task or train.parent.name, test.name)


def read_pairs(path: str, render: str = "clean") -> Pairs:
    """One split of local data.

    Args:
        path: a folder in FlyingChairs' form (`00001_img1.ppm`, `00001_img2.ppm`, `00001_flow.flo`) or
            MPI Sintel's (`clean/alley_1/frame_0001.png`, `flow/alley_1/frame_0001.flo`).
        render: which frames of MPI Sintel.

    Raises:
        ValueError, OSError: there is no such data, or a file of a pair is missing: one line.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such folder.")
    files = _sintel(folder, render) if (folder / "flow").is_dir() else _chairs(folder)
    if not files:
        raise ValueError(
            f"{path}: no flow in it; give a folder with <name>_img1.ppm, <name>_img2.ppm and "
            "<name>_flow.flo (FlyingChairs), or with flow/<scene>/frame_0001.flo and "
            f"{render}/<scene>/frame_0001.png (MPI Sintel's training folder)."
        )
    for *frames, flow in files:
        for frame in frames:
            if not frame.is_file():
                raise FileNotFoundError(f"{flow}: its frame {frame} is missing; take both out.")

    def read(number: int) -> Pair:
        first, second, flow = files[number]
        return _frame(first), _frame(second), read_flow(flow)

    return Pairs([str(flow) for _, _, flow in files], read)


def _chairs(folder: Path) -> list[tuple[Path, Path, Path]]:
    found = []
    flows = sorted(folder.glob("*_flow.flo"))
    for flow in flows:
        name = flow.name.removesuffix("_flow.flo")
        found.append((folder / f"{name}_img1.ppm", folder / f"{name}_img2.ppm", flow))
    names = {flow.name.removesuffix("_flow.flo") for flow in flows}
    for frame in sorted(folder.glob("*_img1.ppm")):
        if frame.name.removesuffix("_img1.ppm") not in names:
            flow = folder / frame.name.replace("_img1.ppm", "_flow.flo")
            raise FileNotFoundError(f"{frame}: its flow {flow} is missing; take the pair out.")
    return found


def _sintel(folder: Path, render: str) -> list[tuple[Path, Path, Path]]:
    found = []
    for flow in sorted((folder / "flow").glob("*/frame_*.flo")):
        number = flow.stem.removeprefix("frame_")
        if not number.isdecimal():
            raise ValueError(f"{flow}: must be named as frame_0001.flo is; rename it.")
        frames = folder / render / flow.parent.name
        after = f"frame_{int(number) + 1:0{len(number)}}.png"
        found.append((frames / f"{flow.stem}.png", frames / after, flow))
    return found


def _frame(path: Path) -> np.ndarray:
    return np.asarray(open_image({"path": str(path)}, str(path)))


def _embedded(split: str) -> Pairs:
    names = [f"texture {number} of {split}" for number in range(textures.ROWS[split])]
    return Pairs(names, lambda number: textures.draw(split, number))

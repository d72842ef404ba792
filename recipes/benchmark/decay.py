"""Whether `decay="auto"` does as well as a sweep over SR-STE's decay, whatever the loss's scale.

    python recipes/benchmark/decay.py --text input.txt.gz --images train.parquet

Two small models: a Transformer on characters under AdamW, and a perceptron on images under SGD with
momentum, both with 1:4 weights and an inverse square root schedule. Each is trained with its
loss multiplied by 0.1, 1 and 10; SGD's learning rate is divided by that, so that without a decay it is
one and the same training. And each at another learning rate. Arms: dense, decay 0 (STE), 2e-5 to 2e-1,
and auto (`--arms "auto*0.3"`: 0.3 times as strong).

Each run becomes a line of `decay.jsonl`, and one that is there is not run again: stop it and start it
at any time. The table and the plot are made of what is there, with `--seeds 0` (no runs) too.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hf_nm
from hf_nm.environment import environment
from hf_nm.methods import auto_decay

CONTEXT = 32  # characters
PULL = auto_decay.PULL  # hf_nm's
Loss = Callable[[nn.Module, torch.Generator], Tensor]


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer: ``[batch, CONTEXT, width]`` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heard.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class CharacterModel(nn.Module):
    """Two blocks of width 48 over the last 32 characters: 55,000 N:M weights."""

    def __init__(self, characters: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList([Block(width, heads=4) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits ``[batch, CONTEXT, characters]`` of the next characters."""
        x = self.embedding(characters) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def image_model() -> nn.Sequential:
    """Three linear layers on ``[batch, 3, 16, 16]``, the first two N:M: 115,000 weights."""
    hidden = [nn.Linear(768, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), nn.Sequential(*hidden), nn.Linear(128, 10))


class Text:
    """Next characters of a text: the first 95% to train on, of the rest 512 windows to score."""

    steps, targets, metric = 1000, None, "loss, nats a character"

    def __init__(self, path: Path, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
        index = {character: i for i, character in enumerate(sorted(set(text)))}
        data = torch.tensor([index[character] for character in text])
        cut = 95 * len(data) // 100
        self.data, self.characters = data[:cut], len(index)
        self.held_out = data[cut : cut + 512 * (CONTEXT + 1)].view(-1, CONTEXT + 1)

    def model(self) -> nn.Module:
        return CharacterModel(self.characters)

    def optimizer(self, model: nn.Module, scale: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            model.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(self.data) - CONTEXT - 1, (16, 1), generator=generator)
        return self._loss(model, self.data[starts + torch.arange(CONTEXT + 1)])

    def score(self, model: nn.Module) -> float:
        return self._loss(model, self.held_out).item()

    def _loss(self, model: nn.Module, windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Images:
    """Ten classes of pictures, 32x32 halved: the first 10,000 of a file to train on, 2,000 to score."""

    steps, targets, metric = 1500, "1.*", "loss, nats a picture"

    def __init__(self, path: Path, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        import numpy as np
        import pyarrow.parquet as pq
        from PIL import Image

        rows = pq.read_table(path, columns=["image", "label"]).slice(0, 12_000).to_pydict()
        pictures = [
            np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
            for image in rows["image"]
        ]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        pixels = F.avg_pool2d((pixels / 255 - 0.47) / 0.25, 2)
        self.inputs, self.labels = pixels, torch.tensor(rows["label"])

    def model(self) -> nn.Module:
        return image_model()

    def optimizer(self, model: nn.Module, scale: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate / scale, momentum=0.9)

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(10_000, (32,), generator=generator)
        flipped = torch.rand(32, 1, 1, 1, generator=generator) < 0.5
        pictures = self.inputs[chosen]
        pictures = torch.where(flipped, pictures.flip(3), pictures)
        return F.cross_entropy(model(pictures), self.labels[chosen])

    def score(self, model: nn.Module) -> float:
        return F.cross_entropy(model(self.inputs[10_000:]), self.labels[10_000:]).item()


def train(task: Text | Images, arm: str, scale: float, seed: int, pattern: str) -> dict[str, Any]:
    """One run.

    Args:
        task: model, data and optimizer.
        arm: `dense`, a decay, `auto`, or `auto*` a number.
        scale: what the loss is multiplied by.
        seed: of weights and batches.
        pattern: such as `1:4`.

    Returns:
        score: the task's metric on held-out data.
        flip_rate: mask entries that flipped per N:M weight and step.
        decay: mean over weights at the end, gradient units; None for a dense run.
        pull: mean over weights of ``decay * rms(S) / rms(g)`` at the end.
        seconds: of the processor.
    """
    started = time.process_time()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = task.model()
    handle = None
    if arm != "dense":
        automatic, _, times = arm.partition("*")
        auto_decay.PULL = PULL * float(times or 1)
        decay = automatic if automatic == "auto" else float(arm)
        n, m = map(int, pattern.split(":"))
        hf_nm.sparsify(model, n, m, decay=decay, targets=task.targets)
    optimizer = task.optimizer(model, scale)
    if arm != "dense":
        handle = hf_nm.attach(optimizer, model)
    warm_up = task.steps // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warm_up, math.sqrt(warm_up / (t + 1)))
    )
    pulls: list[float] = []
    for step in range(task.steps):
        optimizer.zero_grad()
        (scale * task.loss(model, generator)).backward()
        if handle is not None and step >= task.steps - 50:
            pulls += [scales(w) for w in hf_nm.sparse_weights(model)]
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        score = task.score(model)
    row = {"score": score, "flip_rate": None, "decay": None, "pull": None}
    if handle is not None:
        hf_nm.verify(model)
        decays = handle.meter.decays()
        strength = statistics.mean(decays.values()) if decays else float(arm)
        row |= {"flip_rate": handle.flip_rate(), "decay": strength}
        row["pull"] = strength * statistics.mean(pulls)
    return row | {"seconds": round(time.process_time() - started, 1)}


def scales(w: hf_nm.SparseWeight) -> float:
    """``rms(S) / rms(g)``, with ``S`` the kept entries."""
    gradient = w.weight.grad
    assert gradient is not None
    kept = w.weight.numel() * w.pattern.n / w.pattern.m
    return (w.weight.norm() / math.sqrt(kept) / gradient.square().mean().sqrt()).item()


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that are there; a line that a stopped run left half is not one."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def paired(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each task and loss scale the seeds that every arm has: seeds differ by more than arms do."""
    kept = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        for scale in dict.fromkeys(row["loss_scale"] for row in mine):
            here = [row for row in mine if row["loss_scale"] == scale]
            arms = {row["arm"] for row in here}
            seeds = [{row["seed"] for row in here if row["arm"] == arm} for arm in arms]
            kept += [row for row in here if row["seed"] in set.intersection(*seeds)]
    return kept


def summary(rows: list[dict[str, Any]], arms: list[str]) -> str:
    """A table for each task: arms by loss scale, mean and each seed's score."""
    text = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        found = sorted({float(row["loss_scale"]) for row in mine})
        text.append(f"**{task}, {mine[0]['pattern']}** ({mine[0]['metric']}; mean, each seed)\n")
        text.append("| decay | " + " | ".join(f"loss x {scale:g}" for scale in found) + " |")
        text.append("|---|" + "---|" * len(found))
        for arm in arms:
            cells = []
            for scale in found:
                scores = scores_of(mine, arm, scale)
                each = ", ".join(f"{score:.3f}" for score in scores)
                cells.append(f"{statistics.mean(scores):.3f} ({each})" if scores else "")
            if any(cells):
                text.append(f"| {arm} | " + " | ".join(cells) + " |")
        ends = [
            statistics.mean(row["decay"] for row in automatic) if automatic else math.nan
            for automatic in (
                [row for row in mine if row["arm"] == "auto" and row["loss_scale"] == scale]
                for scale in found
            )
        ]
        text.append(
            "| auto's decay in the end | " + " | ".join(f"{end:.2g}" for end in ends) + " |"
        )
        text.append("")
    return "\n".join(text)


def scores_of(rows: list[dict[str, Any]], arm: str, scale: float) -> list[float]:
    """Scores over the seeds; a dense run is one at every scale."""
    return [
        row["score"]
        for row in rows
        if row["arm"] == arm and (row["loss_scale"] == scale or arm == "dense")
    ]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score over decay, a line for each loss scale, with that of auto beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    rows_of_axes = math.ceil(len(tasks) / 2)
    figure, axes = plt.subplots(rows_of_axes, 2, figsize=(11, 4 * rows_of_axes), squeeze=False)
    for ax in axes.flat[len(tasks) :]:
        ax.axis("off")
    for ax, task in zip(axes.flat, tasks, strict=False):
        mine = [row for row in rows if row["task"] == task]
        swept = [r for r in mine if r["arm"] != "dense" and not r["arm"].startswith("auto")]
        numbers = sorted({float(row["arm"]) for row in swept})
        places = {number: math.log10(number) if number else -6 for number in numbers}
        for index, scale in enumerate(sorted({row["loss_scale"] for row in mine})):
            color = f"C{index}"
            by_decay = {
                number: [
                    row["score"]
                    for row in swept
                    if row["loss_scale"] == scale and float(row["arm"]) == number
                ]
                for number in numbers
            }
            there = [(places[number], s) for number, s in by_decay.items() if s]
            means = [statistics.mean(scores) for _, scores in there]
            ax.plot([x for x, _ in there], means, "o-", color=color, label=f"loss x {scale:g}")
            auto = scores_of(mine, "auto", scale)
            if auto:
                ax.plot([0.2 * (index + 1)], [statistics.mean(auto)], "D", color=color)
        dense = scores_of(mine, "dense", 1.0)
        if dense:
            ax.axhline(statistics.mean(dense), color="gray", linestyle=":", label="dense")
        ticks = [*places.values(), 0.4]
        ax.set_xticks(ticks, [*(f"{number:g}" for number in numbers), "auto"])
        ax.set(title=f"{task}, {mine[0]['pattern']}", xlabel="decay", ylabel=mine[0]["metric"])
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, help="any UTF-8 text, also .gz")
    parser.add_argument("--images", type=Path, help="parquet: columns image and label, as CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seeds", type=int, default=2, help="how many, from --first_seed on")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.1, 10.0])
    decays = ["0", "2e-5", "2e-4", "2e-3", "2e-2", "2e-1"]
    parser.add_argument("--arms", nargs="+", default=["dense", "auto", *decays])
    parser.add_argument("--pattern", default="1:4")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "decay.jsonl"

    tasks: dict[str, Text | Images] = {}
    if args.text:
        tasks["characters, AdamW"] = Text(args.text, 1e-2)
        tasks["characters, AdamW, learning rate 3e-3 instead of 1e-2"] = Text(args.text, 3e-3)
    if args.images:
        tasks["images, SGD"] = Images(args.images, 0.03)
        tasks["images, SGD, learning rate 0.1 instead of 0.03"] = Images(args.images, 0.1)
    done = {(r["task"], r["arm"], r["loss_scale"], r["seed"], r["pattern"]) for r in read(file)}
    machine = environment()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for scale in args.scales:
            for name, task in tasks.items():
                for arm in args.arms:
                    key = (name, arm, scale, seed, args.pattern)
                    once = arm == "dense" or "instead" in name
                    if key in done or (once and scale != 1.0):
                        continue
                    row = dict(
                        zip(("task", "arm", "loss_scale", "seed", "pattern"), key, strict=True)
                    )
                    row |= {"metric": task.metric} | train(task, arm, scale, seed, args.pattern)
                    row |= {"command": shlex.join(sys.argv), **machine}
                    with file.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(row) + "\n")
                    print(f"{name}, {arm}, loss x {scale:g}, seed {seed}: {row['score']:.4f}")

    rows = paired([row for row in read(file) if row["pattern"] == args.pattern])
    table = summary(rows, args.arms)
    print(f"\n{table}")
    (args.output / "decay.md").write_text(table, encoding="utf-8")
    if rows:
        plot(rows, args.output / "decay.png")


if __name__ == "__main__":
    main()

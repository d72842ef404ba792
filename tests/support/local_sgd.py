"""The page's block on LocalSGD in one of several processes: ``torchrun local_sgd.py FOLDER``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["ACCELERATE_USE_CPU"] = "true"

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training import state_of

import hf_nm

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "other_tools.md"
BATCHES = 24  # twelve for each of two processes: one average at the eighth step, one at the end


def start() -> dict[str, Any]:
    """What the block leaves out: the same in every process."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(32, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)
    model = hf_nm.sparsify(torch.nn.Sequential(*layers), targets="*")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return {"torch": torch, "model": model, "optimizer": optimizer}


def data() -> list[tuple[Tensor, Tensor]]:
    """The batches of all processes, in their order."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCHES, 8, 32, generator=generator)
    return [(batch, batch[:, :4].argmax(1)) for batch in inputs]


def main(folder: Path) -> None:
    inputs, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    names = start() | {"loader": DataLoader(TensorDataset(inputs, labels), batch_size=8)}
    (code,) = re.findall(
        r"<!-- needs: accelerate -->\n```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL
    )
    exec(code, names)
    accelerator = names["accelerator"]
    assert accelerator.num_processes == 2
    model = accelerator.unwrap_model(names["model"])
    torch.save(state_of(model), folder / f"{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

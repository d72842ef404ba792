"""What several processes do together, for ``test_ddp.py``: ``torchrun processes.py FOLDER``.

Each scenario leaves what each rank saw in ``FOLDER/<scenario>-<rank>.pt``. (transformers is imported
late: it takes longer than all plain loops together.)
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from launching import PATIENCE
from models import RESUMES_ON_CPUS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import SIZES, example, state_of
from wide import EVERYTHING

import hf_nm

STEPS = 6
DECAY = 0.05
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.02),
}


def new_model(seed: int, **options: Any) -> nn.Sequential:
    """A float64 network whose weights depend on the seed."""
    width, hidden, outputs = SIZES
    model = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / 4)
    return hf_nm.sparsify(model, targets="*", **({"decay": DECAY} | options))


def loss_of(model: nn.Module, step: int, rank: int | None, world: int = 2) -> torch.Tensor:
    """Loss on the step's global batch of 8 (``rank`` None), or on the rank's half of it."""
    inputs, targets = (
        tensor if rank is None else tensor.chunk(world)[rank]
        for tensor in example(step, dtype=torch.float64)
    )
    return nn.functional.mse_loss(model(inputs), targets)


def seen(model: nn.Module, handle: hf_nm.Attachment, losses: list[float]) -> dict[str, Any]:
    """What is compared between ranks, and with one process."""
    return {
        "state": state_of(model),
        "step": handle.step,
        "sad": handle.sad_per_layer(),
        "flips": handle.flips_per_layer(),
        "flip_rate": handle.flip_rate(),
        "losses": losses,
        "decays": handle.meter.decays(),
    }


def train(
    rank: int | None,
    *,
    seed: int,
    optimizer: str = "sgd",
    attach: str = "ddp",
    accumulate: int = 1,
    add_group_at: int | None = None,
    copies: bool = True,
    options: dict[str, Any] | None = None,
    method: str | hf_nm.Method = "sr-ste",
    decay: float | str = DECAY,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """A plain loop: one process (``rank`` None), or one of two that train copies in DDP.

    Args:
        rank: this process among the two.
        seed: of the initial weights.
        optimizer: a name in :data:`OPTIMIZERS`.
        attach: given the ``ddp`` wrapper, the ``bare`` module, or the module ``before`` wrapping.
        accumulate: micro-steps per step.
        add_group_at: the step at which the first layer joins the optimizer.
        copies: whether to wrap in DDP at all.
        options: for ``hf_nm.attach``.
        method: for ``hf_nm.sparsify``.
        decay: the same.
        group: the two processes that train copies; all of them if None.
    """
    model = new_model(seed, method=method, decay=decay)
    parameters = model.parameters() if add_group_at is None else model[2].parameters()
    stepped = OPTIMIZERS[optimizer](parameters)
    options = options or {}
    if attach == "before":
        handle = hf_nm.attach(stepped, model, **options)
    wrapped: Any = model
    if rank is not None and copies:
        wrapped = DistributedDataParallel(model, process_group=group)
    if attach != "before":
        handle = hf_nm.attach(stepped, wrapped if attach == "ddp" else model, **options)
    losses = []
    for step in range(STEPS):
        if step == add_group_at:
            stepped.add_param_group({"params": list(model[0].parameters())})
        model.zero_grad()
        for micro_step in range(accumulate):
            last = micro_step == accumulate - 1
            waits = isinstance(wrapped, DistributedDataParallel) and not last
            with wrapped.no_sync() if waits else contextlib.nullcontext():
                loss = loss_of(wrapped, 100 * step + micro_step, rank if copies else None)
                (loss / accumulate).backward()
                losses.append(loss.item())
        stepped.step()
    return seen(model, handle, losses)


def traffic(rank: int) -> dict[str, Any]:
    """Which collectives hf_nm starts in each step, and what DDP would send with every forward."""
    calls: Counter[str] = Counter()
    for name in (
        "broadcast",
        "all_gather_object",
        "all_reduce",
        "all_gather",
        "broadcast_object_list",
    ):
        original = getattr(dist, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    model = new_model(rank)
    wrapped = DistributedDataParallel(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    handle = hf_nm.attach(optimizer, wrapped)
    per_step = []
    for step in range(3):
        calls.clear()
        optimizer.zero_grad()
        loss_of(wrapped, step, rank).backward()
        handle.sad()
        optimizer.step()
        optimizer.state_dict()
        per_step.append(dict(calls))
    return {
        "per_step": per_step,
        "buffers": [name for name, _ in wrapped.named_buffers()],
        "syncs_buffers": wrapped.will_sync_module_buffers(),
        "parameters": sum(p.numel() for p in wrapped.parameters()),
    }


SCENARIOS: dict[str, dict[str, Any]] = {
    "ddp": {"attach": "ddp"},
    "bare": {"attach": "bare"},
    "before": {"attach": "before"},
    "adamw": {"optimizer": "adamw"},
    "accumulation": {"accumulate": 3},
    "schedule": {"options": {"mask_interval": 2, "freeze_masks_at": 5}},
    "fixed": {"method": "fixed"},
    "wide": {"method": EVERYTHING},
    "later": {"add_group_at": 2},
}


# -- the Trainer -----------------------------------------------------------------------------------


def trainer(folder: Path, rank: int, **changes: Any) -> Any:
    """An NMTrainer over the same global batches of 8 in one process or two. Weights are float64, so
    that another order of summation moves no mask; rank 1 starts from other ones.

    (Trainer 5.23 multiplies the loss by the number of processes unless told not to average tokens.)
    """
    from trainers import build, one_layer_bert

    model = one_layer_bert().double()
    if rank:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return build(
        folder,
        model=hf_nm.sparsify(model),
        per_device_train_batch_size=8 // processes,
        average_tokens_across_devices=False,
        save_strategy="steps",
        save_steps=5,
        **changes,
    )


def trained(run: Any) -> dict[str, Any]:
    """What is compared of a Trainer's run."""
    from trainers import figures, train_logs

    return {
        "state": state_of(run.model, run.optimizer),
        "model": state_of(run.model),
        "logs": [
            {"step": line["step"], "loss": line["loss"], **figures(line)}
            for line in train_logs(run)
        ],
    }


def trainer_runs(folder: Path, rank: int) -> dict[str, Any]:
    """One run that goes through, one that dies before step 8 and is resumed from step 5."""
    from trainers import CrashError, StopAt

    whole = trainer(folder / "whole", rank)
    whole.train()
    found = {"whole": trained(whole)}
    if not RESUMES_ON_CPUS:
        return found
    stopped = trainer(folder / "stopped", rank, options={"callbacks": [StopAt(8)]})
    with contextlib.suppress(CrashError):
        stopped.train()
    assert stopped.state.global_step == 8
    dist.barrier()
    resumed = trainer(folder / "stopped", rank)
    resumed.train(resume_from_checkpoint=str(folder / "stopped" / "checkpoint-5"))
    return found | {"resumed": trained(resumed)}


def pairs(rank: int) -> dict[str, Any]:
    """Four processes, two models: ranks 0 and 2 train one, ranks 1 and 3 the other."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    return train(rank // 2, seed=rank, accumulate=2, group=groups[rank % 2])


def forgotten(rank: int) -> dict[str, Any]:
    """Two optimizers on halves of a model in DDP, one of them never attached: the error, if any."""
    model = new_model(seed=rank)
    halves = [torch.optim.SGD(layer.parameters(), lr=0.2) for layer in (model[0], model[2])]
    wrapped = DistributedDataParallel(model)
    hf_nm.attach(halves[0], wrapped)
    for step in range(3):
        model.zero_grad()
        try:
            loss_of(wrapped, step, rank).backward()
        except hf_nm.BrokenPatternError as error:
            return {"step": step, "error": str(error)}
        for half in halves:
            half.step()
    return {"step": None, "error": ""}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE / 2))
    rank = dist.get_rank()

    def keep(name: str, result: dict[str, Any]) -> None:
        torch.save(result, folder / f"{name}-{rank}.pt")

    if dist.get_world_size() == 4:
        keep("pairs", pairs(rank))
    else:
        for name, options in SCENARIOS.items():
            keep(name, train(rank, seed=rank, **options))
        keep("automatic", train(rank, seed=rank, decay="auto"))
        keep("independent", train(rank, seed=rank, copies=False))
        keep("trainer", trainer_runs(folder, rank))
        keep("traffic", traffic(rank))
        keep("forgotten", forgotten(rank))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

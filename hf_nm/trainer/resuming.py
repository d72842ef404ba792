"""Where a Trainer's run goes on: from the newest checkpoint that is whole, or the one that was named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer

from hf_nm.replaced import Replaced
from hf_nm.trainer.checkpoints import check_whole, newest_whole, view, warn_of_random_states


def resume_from_whole_checkpoints(trainer: Trainer) -> None:
    """Let ``trainer.train(resume_from_checkpoint=True)`` skip half-written checkpoints, and a path to
    one raise our error."""

    def checked(train: Callable[..., Any]) -> Callable[..., Any]:
        def from_whole(
            resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            if resume_from_checkpoint:
                resume_from_checkpoint = _checkpoint(trainer, resume_from_checkpoint)
            return train(resume_from_checkpoint, *args, **kwargs)

        return from_whole

    Replaced(trainer, "train", checked)


def _checkpoint(trainer: Trainer, given: str | bool) -> str:
    ranks, rank = trainer.args.world_size, trainer.args.process_index
    if isinstance(given, bool):
        out = str(trainer.args.output_dir)
        mine = [view(out, ranks, rank)]
        # Disks may differ, and every process has to choose the same.
        given = str(newest_whole(out, gather_object(mine) if ranks > 1 else mine))
    else:
        check_whole(given)
    warn_of_random_states(given, ranks, rank)
    return str(given)

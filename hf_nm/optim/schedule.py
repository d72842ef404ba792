"""At which optimizer steps masks are computed, and how strong the decay is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The options of :func:`hf_nm.attach` that say when, as one value.

    Steps are effective optimizer steps, counted from 1.

    Args:
        mask_interval: masks are computed again at every so many steps, held in between.
        freeze_masks_at: the last step at which masks are computed; None never freezes them.
        decay_warmup_steps: the decay rises linearly over the first so many steps: at step k it is
            ``decay * min(1, k / decay_warmup_steps)``. 0 starts with the whole of it.

    Raises:
        ValueError: an option is out of range.
    """

    mask_interval: int = 1
    freeze_masks_at: int | None = None
    decay_warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("mask_interval", 1),
            ("freeze_masks_at", 1),
            ("decay_warmup_steps", 0),
        ):
            value = getattr(self, name)
            if value is None and name == "freeze_masks_at":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be an integer >= {least} (optimizer steps), but got {value!r}"
                )

    def moves_masks_at(self, step: int) -> bool:
        """Whether masks are computed at ``step``."""
        frozen = self.freeze_masks_at is not None and step > self.freeze_masks_at
        return not frozen and step % self.mask_interval == 0

    @property
    def last_masks_at(self) -> int | None:
        """The last step at which masks are computed, 0 for none; None where masks are never frozen."""
        end = self.freeze_masks_at
        return None if end is None else end - end % self.mask_interval

    def freezes_masks_after(self, step: int) -> bool:
        """Whether masks move no more after ``step``."""
        return self.freeze_masks_at is not None and step >= self.freeze_masks_at

    def decay_factor(self, step: int) -> float:
        """What the decay is multiplied by at ``step``: up to 1.0."""
        return min(1.0, step / self.decay_warmup_steps) if self.decay_warmup_steps else 1.0

    def __str__(self) -> str:
        every = "every step" if self.mask_interval == 1 else f"every {self.mask_interval} steps"
        until = "" if self.freeze_masks_at is None else f" up to step {self.freeze_masks_at:,}"
        return f"computed {every}{until}"

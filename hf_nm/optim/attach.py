"""When masks move: around each step of an ordinary torch optimizer.

::

    before:  grad   += decay * R      the method's change to the gradient (R is already (1-E)*W)
             weight += R              the dense weight, bit for bit
    step:    the optimizer, unchanged
    after:   E = mask(weight); R = weight where pruned; weight = weight where kept

(The SR-STE update of Zhou et al. 2021, with the decay added once per optimizer step.)
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hf_nm.interrupts import uninterrupted
from hf_nm.model.refused import checked_model, inner_optimizer
from hf_nm.model.weights import SparseWeight, sparse_weights
from hf_nm.optim import resume
from hf_nm.optim.before_step import Readiness
from hf_nm.optim.guards import guard_loading, guard_modes, guard_step
from hf_nm.optim.meter import MaskMeter
from hf_nm.optim.schedule import Schedule
from hf_nm.optim.step import Step, stray_write
from hf_nm.processes import say_attached
from hf_nm.replaced import Replaced


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    mask_interval: int = 1,
    freeze_masks_at: int | None = None,
    decay_warmup_steps: int = 0,
) -> Attachment:
    """Make ``optimizer`` train the N:M weights of ``model`` that it holds.

    Call it once, before loading the optimizer's checkpoint, and train as usual. Steps are effective
    optimizer steps: accumulation and steps skipped for an fp16 overflow do not count. The optimizer's
    ``state_dict()`` then also carries masks, pruned parts and counters, so a resumed run continues
    exactly. Calling it again with the same optimizer, model and options returns the same handle.
    After a step ``.grad`` still holds the SR-STE term: call ``zero_grad()`` before the next backward.
    Weights in bf16 or fp16 that are updated without an fp32 copy round most small updates away, which
    a warning says.

    Args:
        optimizer: any ``torch.optim.Optimizer``, or accelerate's wrapper of one. Weights are looked
            up in its ``param_groups`` at each step, so groups may be added later.
        model: a sparsified model, also wrapped in DDP, sharded by FSDP2 or compiled. Under DDP masks
            and pruned parts are taken from rank 0 before the first step.
        mask_interval: masks are computed again at every so many steps, held in between.
        freeze_masks_at: the last step at which masks are computed; None never freezes them.
        decay_warmup_steps: SR-STE's decay rises linearly over the first so many steps, from
            ``decay / decay_warmup_steps`` at the first to ``decay``; 0 starts with the whole of it.

    Returns:
        A handle: ``.sad()``, ``.flip_rate()``, ``.step``, ``.remove()``.

    Raises:
        ValueError: nothing in ``model`` is N:M, the optimizer holds none of it, it is attached with
            other options or to another model, a weight is on the meta device or breaks its pattern,
            an option is out of range, or the decay warms up but no weight's method has a decay.
        TypeError: ``optimizer`` is not a torch optimizer, or of a kind that keeps its own copy of the
            weights or updates them outside ``step`` (DeepSpeed, LOMO, layer-wise GaLore).
    """
    schedule = Schedule(mask_interval, freeze_masks_at, decay_warmup_steps)
    outer, optimizer = optimizer, inner_optimizer(optimizer)
    model = checked_model(model)

    existing: Attachment | None = getattr(optimizer, "_nm_attachment", None)
    if existing is not None:
        if existing.model is not model:
            raise ValueError(
                "this optimizer is attached to another model; call .remove() on its handle first, "
                "or put both models into one nn.ModuleDict and attach that"
            )
        if existing.schedule != schedule:
            raise ValueError(
                f"this optimizer is attached with {existing.schedule!r}, not {schedule!r}; call "
                ".remove() on its handle first"
            )
        existing._guard(outer)
        return existing
    attachment = Attachment(optimizer, outer, model, schedule)
    _warn_of_rounding(optimizer, attachment.weights())
    return attachment


class Attachment:
    """The handle that :func:`attach` returns: it acts around each step until :meth:`remove`.

    Attributes:
        optimizer: the torch optimizer.
        model: the model, without wrappers.
        schedule: when masks move, and how the decay rises.
        meter: SAD and flips of the optimizer's N:M weights, and the steps it has taken.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        outer: torch.optim.Optimizer,
        model: nn.Module,
        schedule: Schedule,
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.schedule = schedule
        self.meter = MaskMeter(optimizer, model)
        self._step: Step | None = None  # between steps, and in one that is skipped
        self._strays: dict[str, Tensor] = {}  # found on a device that nobody waited for
        self._depth = 0
        self._loading: dict[str, Any] | None = None

        weights = self._checked_weights()
        self._readiness = Readiness(model, schedule)
        self.meter.start_anew(self._readiness.at_attach(weights))
        for w in weights:
            self.meter.history(w)
            w.state.watch.attached()
        self._hold_until_next(weights)

        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            *guard_loading(optimizer, self._take_from_checkpoint, self._load_taken),
            *guard_modes(optimizer, self.weights),
        ]
        self._guards: list[Replaced] = []
        self._guard(optimizer)
        self._guard(outer)
        optimizer._nm_attachment = self  # type: ignore[attr-defined]
        say_attached()

    def _checked_weights(self) -> list[SparseWeight]:
        """The optimizer's N:M weights, if it can be attached to them."""
        everything = sparse_weights(self.model)
        if not everything:
            raise ValueError(
                "attach needs a model with N:M weights, but this one has none; call "
                "hf_nm.sparsify(model) (or hf_nm.restore(model) on a loaded sparse checkpoint) first"
            )
        weights = self.weights()
        if not weights:
            raise ValueError(
                f"the optimizer holds none of the model's {len(everything)} N:M weights (first: "
                f"{everything[0].name}); build it from model.parameters() of this very model (frozen "
                "ones, as the base under PEFT, stay N:M without attach: use a plain Trainer or loop)"
            )
        warmup = self.schedule.decay_warmup_steps
        if warmup and not any(w.state.spec.method.uses_decay for w in weights):
            raise ValueError(
                f"decay_warmup_steps={warmup}, but none of these weights has a decay to warm up "
                f"(method {weights[0].state.spec.method.name!r}); leave it out, or use "
                "hf_nm.sparsify(model, method='sr-ste')"
            )
        if (last := self.schedule.last_masks_at) is not None:
            for w in weights:
                if (present := w.state.spec.pattern_at(last)) != w.pattern:
                    raise ValueError(
                        f"freeze_masks_at={self.schedule.freeze_masks_at}, but {w.name} is "
                        f"still {present} then, not {w.pattern} (pattern_at of method "
                        f"{w.state.spec.method.name!r}, at step {last}); freeze masks later"
                    )
        if resume.was_lost(self.optimizer.param_groups):
            raise ValueError(
                "the optimizer's checkpoint was loaded before attach, so the masks and pruned parts "
                "in it were lost; call hf_nm.attach(optimizer, model) first, then "
                "optimizer.load_state_dict(...) (in another Trainer: NMCallback(...).install(trainer))"
            )
        return weights

    def remove(self) -> None:
        """Detach: the weights keep their pattern, further steps of the optimizer are not projected
        (the next backward would say so)."""
        for hook in [*self._hooks, *self._guards]:
            hook.remove()
        self._guards.clear()
        for w in self.weights():
            w.state.watch.detached()
            w.state.hold(held=False, frozen=False)
        if getattr(self.optimizer, "_nm_attachment", None) is self:
            del self.optimizer._nm_attachment

    # -- measuring -------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Effective optimizer steps so far."""
        return self.meter.step

    @property
    def step_at_mark(self) -> int:
        """``step`` at the last :meth:`mark`."""
        return self.meter.step_at_mark

    def weights(self) -> list[SparseWeight]:
        """The N:M weights in the optimizer's ``param_groups`` now."""
        return self.meter.weights()

    def sad(self, since: str = "start") -> int:
        """SAD between the masks at ``since`` and now, in mask entries: see :meth:`MaskMeter.sad`."""
        self.raise_if_written()
        return self.meter.sad(since)

    def sad_per_layer(self, since: str = "start") -> dict[str, int]:
        """:meth:`sad` of each weight by its name."""
        self.raise_if_written()
        return self.meter.sad_per_layer(since)

    def flips_per_layer(self, since: str = "start") -> dict[str, int]:
        """Mask entries that changed, summed step by step since ``since``, by weight."""
        return self.meter.flips_per_layer(since)

    def flip_rate(self, since: str = "start") -> float:
        """Flips summed step by step / (N:M weights x steps) since ``since``: a fraction in [0, 1]."""
        self.raise_if_written()
        return self.meter.flip_rate(since)

    def mark(self) -> None:
        """Measure ``since="mark"`` from the present masks on (the Trainers do it at each log)."""
        self.meter.mark()

    # -- around a step ---------------------------------------------------------------------------------

    @torch.compiler.disable  # `torch.compile(optimizer.step)` compiles the step alone
    @torch.no_grad()
    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # An optimizer whose step calls its base class's: torch runs the hooks for both.
        self._depth += 1
        if self._depth > 1:
            return None
        self._close()  # nothing, unless a step ended in a way that left no trace
        if _overflowed(optimizer):
            return None
        weights = self.weights()
        if not weights:
            raise ValueError(
                "the optimizer holds no N:M weight any more (finalized, or its param_groups were "
                "replaced); call .remove() on the handle to train on without hf_nm"
            )
        self.meter.start_anew(self._readiness.before_step(weights))
        for w in weights:
            self.meter.history(w)
            w.state.watch.stepped()

        step = self._step = Step(optimizer, weights, self.schedule.decay_factor(self.step + 1))
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        with uninterrupted():
            if closure is None:
                scale = getattr(optimizer, "grad_scale", None)
                step.open(1.0 if scale is None else scale)
            else:
                wrapped = step.open_for(closure)
        if closure is None:
            return None
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, kwargs | {"closure": wrapped}

    @torch.compiler.disable
    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth > 0 or self._step is None:
            return
        step = self._step
        with uninterrupted():
            self.meter.step += 1
            for w in step.weights:
                w.state.at_step(self.step)
                w.state.hold(
                    held=not self.schedule.moves_masks_at(self.step), frozen=w.state.mask_frozen
                )
            self.meter.add(step.close())
            self._keep_strays(step)
            self._step = None
            self._hold_until_next(step.weights)

    def _close(self) -> None:
        """Project what a step left open, and forget the step."""
        if self._step is not None:
            with uninterrupted():
                self._step.close()
                self._keep_strays(self._step)
                self._step = None

    def _keep_strays(self, step: Step) -> None:
        for name, stray in step.strays.items():
            self._strays[name] = self._strays[name] | stray if name in self._strays else stray

    def raise_if_written(self) -> None:
        """Raise if a step found that other code had written a pruned entry before it.

        On a CPU the step itself does. On an accelerator it would have to wait for the device, so the
        values were replaced by what the dense weight holds, and this says so: it is called where a
        program waits anyway, by :meth:`sad` and its like, the optimizer's ``state_dict``, and by the
        Trainers at each log, evaluation and save and at the end of training.

        Raises:
            BrokenPatternError: the first such weight is named.
        """
        found, self._strays = self._strays, {}
        for name, stray in found.items():
            if stray:
                raise stray_write(name)

    def _hold_until_next(self, weights: list[SparseWeight]) -> None:
        """Tell the weights whether a projection between steps may move masks: only where every step
        does; and whether they are frozen for good."""
        held = self.schedule.mask_interval > 1 or not self.schedule.moves_masks_at(self.step + 1)
        for w in weights:
            w.state.at_step(self.step)
            w.state.hold(held=held, frozen=self.schedule.freezes_masks_after(self.step))

    def _guard(self, owner: torch.optim.Optimizer) -> None:
        if all(owner is not guard.owner for guard in self._guards):
            self._guards.append(guard_step(owner, self._after_failure))

    def _after_failure(self) -> None:
        self._depth = 0
        self._close()

    # -- checkpoints -----------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        self.raise_if_written()
        resume.save_into(state_dict, self.meter, self.schedule)

    def _take_from_checkpoint(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> None:
        self._loading = resume.take_from(state_dict, self.meter, self.schedule)
        if self._loading is None:
            warnings.warn(
                "this optimizer checkpoint was saved without hf_nm: masks stay as they are and "
                "pruned parts are not restored",
                stacklevel=5,  # the caller of load_state_dict, which torch wraps twice
            )

    def _load_taken(self, optimizer: torch.optim.Optimizer) -> None:
        if self._loading is not None:
            resume.load(self._loading, self.meter)
            self._hold_until_next(self.weights())
        self._loading = None


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler told a fused optimizer to skip this step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


# What optimizers call it that low-precision weights lose nothing: torchao, torchdistx, optimi, apex.
_KEEPS_WHAT_ROUNDS_AWAY = (
    "bf16_stochastic_round",
    "use_kahan_summation",
    "kahan_sum",
    "master_weights",
)


def _warn_of_rounding(optimizer: torch.optim.Optimizer, weights: list[SparseWeight]) -> None:
    """Say that updates will round away, where N:M weights are trained in half precision as they are."""
    if any(
        optimizer.defaults.get(name) or getattr(optimizer, name, None)
        for name in _KEEPS_WHAT_ROUNDS_AWAY
    ):
        return
    half = [
        w
        for w in weights
        if w.weight.dtype in (torch.bfloat16, torch.float16)
        and w.weight.requires_grad
        and w.weight.is_leaf
    ]
    if half:
        dtype = str(half[0].weight.dtype).removeprefix("torch.")
        warnings.warn(
            f"{len(half)} of the {len(weights)} N:M weights (first: {half[0].name}) are {dtype}, and "
            f"{type(optimizer).__name__} updates them without fp32 copies: most small updates round "
            "away, and masks hardly move. Load the model with dtype=torch.float32, and train in mixed "
            "precision (bf16=True in TrainingArguments, torch.autocast in a loop)",
            stacklevel=3,
        )

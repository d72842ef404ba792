"""When masks move: around each step of an ordinary torch optimizer.

::

    before:  grad   += decay * R      the method's change to the gradient (R is already (1-E)*W)
             weight += R              the dense weight, bit for bit
    step:    the optimizer, unchanged
    after:   E = mask(weight); R = weight where pruned; weight = weight where kept

(The SR-STE update of Zhou et al. 2021, with the decay added once per optimizer step.)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_nm.methods.method import FIXED, STE
from hf_nm.model.refused import checked_model, inner_optimizer
from hf_nm.model.sharding import local, placed_as
from hf_nm.model.weights import SparseWeight, sparse_weights
from hf_nm.optim import resume
from hf_nm.optim.before_step import Readiness
from hf_nm.optim.guards import StepGuard, load_hooks
from hf_nm.optim.meter import MaskMeter
from hf_nm.optim.modes import ModeGuard
from hf_nm.optim.schedule import Schedule


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
    return Attachment(optimizer, outer, model, schedule)


class Attachment(MaskMeter):
    """The handle that :func:`attach` returns.

    It measures (:class:`~hf_nm.optim.meter.MaskMeter`) and, until :meth:`remove`, acts around each step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        outer: torch.optim.Optimizer,
        model: nn.Module,
        schedule: Schedule,
    ) -> None:
        super().__init__(optimizer, model)
        self.schedule = schedule
        self._stepping: list[SparseWeight] = []
        self._open: list[SparseWeight] = []
        self._before_closure: list[Tensor] = []
        self._depth = 0
        self._skipping = False
        self._loading: dict[str, Any] | None = None

        everything = sparse_weights(model)
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
        if schedule.decay_warmup_steps and all(w.state.method in (STE, FIXED) for w in weights):
            raise ValueError(
                f"decay_warmup_steps={schedule.decay_warmup_steps}, but none of these weights has a "
                f"decay to warm up (method {weights[0].state.method.name!r}); leave it out, or use "
                "hf_nm.sparsify(model, method='sr-ste')"
            )
        if resume.was_lost(optimizer.param_groups):
            raise ValueError(
                "the optimizer's checkpoint was loaded before attach, so the masks and pruned parts "
                "in it were lost; call hf_nm.attach(optimizer, model) first, then "
                "optimizer.load_state_dict(...) (in another Trainer: NMCallback(...).install(trainer))"
            )
        self._readiness = Readiness(model)
        self._start_anew(self._readiness.at_attach(weights))
        for w in weights:
            self.history(w)
            w.state.stepped()
        self._hold_until_next(weights)

        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            *load_hooks(optimizer, self._take_from_checkpoint, self._load_taken),
        ]
        self._guards: list[StepGuard] = []
        self._guard(optimizer)
        self._guard(outer)
        self._modes = ModeGuard(optimizer, self.weights)
        optimizer._nm_attachment = self  # type: ignore[attr-defined]

    def remove(self) -> None:
        """Detach: the weights keep their pattern, further steps of the optimizer are not projected
        (the next backward would say so)."""
        for hook in self._hooks:
            hook.remove()
        for w in self.weights():
            w.state.attached = w.state.held = False
        if getattr(self.optimizer, "_nm_attachment", None) is self:
            del self.optimizer._nm_attachment
        for guard in self._guards:
            guard.remove()
        self._guards.clear()
        self._modes.remove()

    # -- around a step -----------------------------------------------------------------------------

    @torch.compiler.disable  # `torch.compile(optimizer.step)` compiles the step alone
    @torch.no_grad()
    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # An optimizer whose step calls its base class's: torch runs the hooks for both.
        self._depth += 1
        if self._depth > 1:
            return None
        self._project(count=False)  # nothing, unless a step ended in a way that left no trace
        self._skipping = _overflowed(optimizer)
        if self._skipping:
            return None
        weights = self.weights()
        if not weights:
            raise ValueError(
                "the optimizer holds no N:M weight any more (finalized, or its param_groups were "
                "replaced); call .remove() on the handle to train on without hf_nm"
            )
        self._start_anew(self._readiness.before_step(weights))
        for w in weights:
            self.history(w)
            w.state.stepped()

        self._stepping = weights
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            scale = getattr(optimizer, "grad_scale", None)
            self._open = [w for w in weights if w.weight.grad is not None]
            self._enter_dense(1.0 if scale is None else scale)
            return None
        self._open = weights
        self._before_closure = [w.state.mask.clone() for w in weights if w.state.mask is not None]
        for w in weights:
            w.state.merge(w.weight)
        wrapped = self._at_sparse_weights(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, kwargs | {"closure": wrapped}

    @torch.compiler.disable
    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        if self._skipping:
            self._skipping = False
            return
        self.step += 1
        for w in self._stepping:
            w.state.held = not self.schedule.moves_masks_at(self.step)
        self._project(count=True)
        self._hold_until_next(self._stepping)

    def _enter_dense(self, scale: float | Tensor) -> None:
        """Gradients get the method's change, parameters their dense weight: weight by weight, so
        that each pruned part is read from memory once."""
        ascending = {  # torch negates these gradients in the step, and the decay must still shrink
            id(parameter)
            for group in self.optimizer.param_groups
            if group.get("maximize")
            for parameter in group["params"]
        }
        scale = scale * self.schedule.decay_factor(self.step + 1)
        for w in self._open:
            gradient, state = w.weight.grad, w.state
            if gradient is not None:
                gradient = w.weight.grad = placed_as(gradient, w.weight)
                assert state.mask is not None
                strength = state.decay * scale * (-1.0 if id(w.weight) in ascending else 1.0)
                state.method.adjust_gradient(local(gradient), state.pruned, state.mask, strength)
            state.merge(w.weight)

    def _project(self, *, count: bool) -> None:
        """Sparse weights again in everything that is open; safe to call at any time."""
        before = self._before_closure
        for index, w in enumerate(self._open):
            flips = w.state.split(w.weight, update_mask=w.state.moves)
            mask = w.state.mask
            if before and mask is not None:  # a closure moved masks in between: count the net
                flips = torch.count_nonzero(before[index] != mask)
            if count and flips is not None:
                self.history(w).add(flips)
        self._open = []
        self._before_closure = []

    def _at_sparse_weights(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """``closure`` for optimizers that evaluate the loss inside ``step`` (LBFGS, SAM): it sees
        the sparse weights, and its gradients get the method's change."""

        @functools.wraps(closure)
        def evaluate() -> Any:
            with torch.no_grad():
                for w in self._open:
                    w.state.split(w.weight, update_mask=w.state.moves)
            loss = closure()
            with torch.no_grad():
                self._enter_dense(1.0)
            return loss

        return evaluate

    def _hold_until_next(self, weights: list[SparseWeight]) -> None:
        """Tell the weights whether a projection between steps may move masks: only where every step
        does."""
        held = self.schedule.mask_interval > 1 or not self.schedule.moves_masks_at(self.step + 1)
        for w in weights:
            w.state.held = held

    def _guard(self, owner: torch.optim.Optimizer) -> None:
        if all(owner is not guard.owner for guard in self._guards):
            self._guards.append(StepGuard(owner, self._after_failure))

    def _after_failure(self) -> None:
        self._depth = 0
        self._project(count=False)

    # -- checkpoints -------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        resume.save_into(state_dict, self)

    def _take_from_checkpoint(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> None:
        self._loading = resume.take_from(state_dict, self)
        if self._loading is None:
            warnings.warn(
                "this optimizer checkpoint was saved without hf_nm: masks stay as they are and "
                "pruned parts are not restored",
                stacklevel=5,  # the caller of load_state_dict, which torch wraps twice
            )

    def _load_taken(self, optimizer: torch.optim.Optimizer) -> None:
        if self._loading is not None:
            resume.load(self._loading, self)
            self._hold_until_next(self.weights())
        self._loading = None


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler told a fused optimizer to skip this step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())

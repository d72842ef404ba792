"""What a sparse layer is: an ordinary module whose parameter *is* the sparse weight ``S``.

The pruned part ``R`` and the mask ``E`` wait beside it in an
:class:`~hf_nm.model.state.NMState`. They are neither parameters nor buffers: a state dict keeps the
dense model's keys, and DDP does not send them with every forward. ``forward`` is inherited unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hf_nm.methods.method import Method
from hf_nm.methods.named import parse_method
from hf_nm.model.parts import Spec
from hf_nm.model.sharding import is_sharded, like_weight
from hf_nm.model.state import NMState
from hf_nm.sparsity.check import BrokenPatternError
from hf_nm.sparsity.mask import check_maskable
from hf_nm.sparsity.pattern import NMPattern


class NMLayer(nn.Module):
    """Mixed into a module's class: one or more of its parameters are N:M.

    ``_nm`` maps a parameter's local name to its :class:`NMState`; modules that share a parameter
    share the state.
    """

    _dense_class: type[nn.Module]
    _nm: dict[str, NMState]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NMLayer:
        for name, state in self._nm.items():
            if is_sharded(getattr(self, name)):
                # torch moves a shard by swapping it with another tensor, which a weak reference forbids
                state.watch.stop()
        super()._apply(fn, recurse)
        for name, state in self._nm.items():
            state.apply(fn)
            state.follow(getattr(self, name))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, state in self._nm.items():
            state.match_placement(getattr(self, name))
            if state.is_dense and not state.on_request:
                raise BrokenPatternError(
                    f"{prefix}{name} holds its dense weight just now, inside optimizer.step(), so it is "
                    "not saved as a sparse one; save after the step (a hook of the optimizer or another "
                    "thread came too early), or inside `with hf_nm.dense_weights(model):` on purpose"
                )
            if state.breaks(getattr(self, name)):
                raise BrokenPatternError(
                    f"{prefix}{name} is not {state.pattern} any more, so it is not saved: other "
                    "code wrote it without projecting. Use hf_nm.attach(optimizer, model) for "
                    "training and `with hf_nm.dense_weights(model):` for other writes; entering "
                    "and leaving that context now takes the present values as dense weights"
                )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, state in self._nm.items():
            weight, loaded = getattr(self, name), state_dict.get(prefix + name)
            if loaded is not None and loaded.shape == weight.shape:  # else torch complains
                state.after_load(weight)
            state.follow(weight)

    def _retake(self) -> None:
        """Take the masks of newly initialised weights."""
        for name, state in self.__dict__.get("_nm", {}).items():  # none yet while the class builds
            state.project_dense(getattr(self, name))

    def extra_repr(self) -> str:
        states = self.__dict__.get("_nm", {})
        only = list(states) == ["weight"]
        nm = [
            f"{'' if only else f'{name}: '}{state.pattern} {state.spec.method.name}"
            for name, state in states.items()
        ]
        return ", ".join([part for part in [super().extra_repr(), *nm] if part])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, weight_state in self._nm.items():
            weight = getattr(self, name)
            # A copy made inside dense_weights() or a step: nobody would project it.
            weight_state.split(weight, update_mask=weight_state.updates_mask)
            weight_state.follow(weight)


class NMLinear(NMLayer, nn.Linear):
    """``nn.Linear`` whose weight is N:M: ``y = x S^T + b`` with ``S = E*W``.

    :func:`hf_nm.sparsify` makes these from a model's linear layers; it can also be built by hand.

    Args:
        in_features: size of each input, a multiple of ``m``.
        out_features: size of each output.
        bias: whether there is an additive bias.
        n: weights kept per group.
        m: weights per group, consecutive along ``in_features``.
        method: ``"sr-ste"``, ``"ste"``, ``"fixed"`` or a :class:`~hf_nm.methods.method.Method`.
        decay: SR-STE's decay, in gradient units, or ``"auto"``.

    Attributes:
        weight: ``S``, ``[out_features, in_features]``, exactly zero where pruned.
        bias: ``[out_features]`` or None.

    Raises:
        ValueError: ``m`` does not divide ``in_features``, or the pattern or method is not valid.
    """

    _dense_class = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        n: int = 2,
        m: int = 4,
        method: str | Method = "sr-ste",
        decay: float | str = 2e-4,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        pattern = NMPattern(n, m)
        check_maskable(self.weight, pattern)
        state = NMState(Spec("weight", pattern, -1, parse_method(method), decay))
        self._nm = {"weight": state}
        state.project_dense(self.weight)
        state.follow(self.weight)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Linear`` does, then take the mask of the new weight."""
        super().reset_parameters()
        self._retake()

    @property
    def pattern(self) -> NMPattern:
        """The weight's N:M pattern."""
        return self._nm["weight"].pattern

    @property
    def mask(self) -> Tensor | None:
        """``E``: bool, ``[out_features, in_features]``, True where kept; None on the meta device."""
        mask = self._nm["weight"].mask
        return None if mask is None else like_weight(mask, self.weight)

    def dense_weight(self) -> Tensor:
        """``W = S + R``, a new tensor ``[out_features, in_features]``: what the optimizer trains."""
        return self._nm["weight"].dense(self.weight)


_SPARSE_CLASSES: dict[type[nn.Module], type[NMLayer]] = {nn.Linear: NMLinear}


def make_sparse(module: nn.Module, states: dict[str, NMState]) -> None:
    """Turn ``module`` into its sparse form in place: same object, same parameters, same hooks."""
    if not isinstance(module, NMLayer):
        module.__class__ = _sparse_class(type(module))
        module.__dict__["_nm"] = {}
    module.__dict__["_nm"].update(states)


def make_dense(module: NMLayer) -> None:
    """Undo :func:`make_sparse`: the parameter stays the sparse weight, what waited is dropped."""
    for state in module._nm.values():
        state.watch.stop()
    del module._nm
    module.__class__ = _dense_class(type(module))


def _sparse_class(dense_class: type[nn.Module]) -> type[NMLayer]:
    """The class of ``dense_class``'s sparse form; its forward is inherited."""
    if dense_class not in _SPARSE_CLASSES:

        def reduce(self: nn.Module, protocol: Any) -> Any:
            return _empty_layer, (dense_class,), self.__getstate__()

        body: dict[str, Any] = {
            "_dense_class": dense_class,
            "__reduce_ex__": reduce,  # pickle cannot find a class made here by its name
            "__module__": dense_class.__module__,
            "__doc__": f"{dense_class.__name__} with N:M weights.",
        }
        base = NMLinear if issubclass(dense_class, nn.Linear) else NMLayer
        if base is NMLayer and hasattr(dense_class, "reset_parameters"):

            def reset_parameters(self: Any) -> None:
                dense_class.reset_parameters(self)
                self._retake()

            body["reset_parameters"] = reset_parameters
        _SPARSE_CLASSES[dense_class] = type(f"NM{dense_class.__name__}", (base, dense_class), body)
    return _SPARSE_CLASSES[dense_class]


def _dense_class(layer_class: type) -> type:
    """The dense class of a sparse one, also under a class made of it since (FSDP2 does that)."""
    if not issubclass(layer_class, NMLayer):
        return layer_class
    if layer_class in _SPARSE_CLASSES.values():
        return layer_class._dense_class
    bases = tuple(_dense_class(base) for base in layer_class.__bases__)
    body = {name: value for name, value in layer_class.__dict__.items() if name != "__dict__"}
    return type(layer_class.__name__.replace("NM", "", 1), bases, body)


def _empty_layer(dense_class: type[nn.Module]) -> nn.Module:
    layer_class = _sparse_class(dense_class)
    return layer_class.__new__(layer_class)

"""Making a model sparse, plain again, and sparse once more: in place, the same Parameter objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from hf_nm.formats.manifest import KEY, Manifest
from hf_nm.formats.recorded import Holder, holders, recorded, saved_name, write_manifest
from hf_nm.methods.method import Method, check_decay
from hf_nm.methods.named import parse_method
from hf_nm.model.layers import NMLayer, make_dense, make_sparse
from hf_nm.model.parts import Spec
from hf_nm.model.refused import check_plain
from hf_nm.model.report import report
from hf_nm.model.sharding import check_shards
from hf_nm.model.state import NMState
from hf_nm.model.weights import sparse_weights, unwrap
from hf_nm.sparsity.check import BrokenPatternError, check_pattern
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.targets.kinds import input_dims
from hf_nm.targets.rule import Target, find_targets
from hf_nm.targets.selection import Selection

ModelT = TypeVar("ModelT", bound=nn.Module)


def sparsify(
    model: ModelT,
    n: int = 2,
    m: int = 4,
    *,
    method: str | Method = "sr-ste",
    decay: float | str = 2e-4,
    targets: Selection = None,
    exclude: Selection = None,
    patterns: Mapping[str, str | NMPattern] | None = None,
) -> ModelT:
    """Make the matrices inside a model's transformer blocks N:M sparse, in place.

    Each weight ``W`` becomes ``S = E*W`` with its ``n`` largest magnitudes kept of every ``m``
    consecutive entries along the input dimension. Train with :class:`hf_nm.NMTrainer`, or call
    :func:`hf_nm.attach` on the optimizer of a plain loop. Embeddings, heads, poolers and whatever is
    tied to an embedding stay dense; :func:`hf_nm.report` says for every weight what was done and why.

    Args:
        model: any transformers model or ``nn.Module``, also sharded by FSDP2 or a tensor-parallel plan;
            on the meta device masks are computed when weights arrive.
        n: weights kept per group.
        m: weights per group.
        method: ``"sr-ste"`` (straight-through gradient plus ``decay * R``, the paper's), ``"ste"``
            (the same with decay 0), ``"fixed"`` (the first magnitude mask is kept, as in ASP), or a
            :class:`hf_nm.methods.method.Method`.
        decay: SR-STE's decay, in gradient units; ``"auto"`` follows the scale of each weight's
            gradient (:mod:`hf_nm.methods.auto_decay`).
        targets: instead of the rule: globs over module or parameter names (``"*.fc1"``), or a
            predicate ``(name, module) -> bool``.
        exclude: the same forms: what stays dense.
        patterns: ``{glob: "1:4"}``, other patterns for some of the chosen weights.

    Returns:
        ``model``, the same object. ``model.config.nm_sparsity`` describes what was done; where only
        models inside have a config, theirs does, with the names in it.

    Raises:
        ValueError: the pattern, method or decay is not valid, a glob matches nothing, a targeted
            weight cannot be N:M, nothing was found, or the model is already sparse, quantized,
            offloaded, compiled or wrapped (DDP, FSDP1, DeepSpeed), or a shard cuts groups.
        TypeError: ``n`` or ``m`` is not an integer, or ``model`` not a module.
    """
    pattern = NMPattern(n, m)
    method = parse_method(method)
    decay = check_decay(decay)
    check_plain(model)
    if recorded(model):
        raise ValueError(
            f"model.config.{KEY} says that this is a sparse checkpoint with its layers dense; call "
            f"hf_nm.restore(model) to train on from it, or delete model.config.{KEY} to start anew"
        )
    found, skipped = find_targets(
        model, pattern, targets=targets, exclude=exclude, patterns=patterns
    )
    if not found:
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        rows = [f"{name} {shapes[name]}: {reason}" for name, reason in skipped.items()]
        raise ValueError(
            f"sparsify found no weight to make {pattern}; it looks for matrices inside "
            "transformer blocks. Name modules in targets=, for example targets='*.fc1'. Skipped:\n  "
            + ("\n  ".join(rows[:20]) if rows else "(the model has no weight of two dimensions)")
            + (f"\n  ... and {len(rows) - 20} more" if len(rows) > 20 else "")
        )
    _convert(model, found, method, decay)
    model._nm_skipped = skipped  # type: ignore[assignment]
    _record(model, pattern, method, decay, found)
    return model


def finalize(model: ModelT) -> ModelT:
    """Give a trained model its plain layers back, in place; what is published.

    Weights stay the sparse ones, pruned parts are dropped, ``config.nm_sparsity`` stays (a model
    without a transformers config keeps no record of its pattern).

    Returns:
        ``model``, the same object.

    Raises:
        ValueError: the model has no N:M weight, is inside ``dense_weights``, or a weight breaks its
            pattern.
    """
    weights = sparse_weights(model)
    if not weights:
        raise ValueError("finalize needs a sparsified model, but this one has no N:M weight")
    for w in weights:
        w.state.match_placement(w.weight)
        if w.state.is_dense or w.state.breaks(w.weight):
            raise BrokenPatternError(
                f"{w.name} does not hold its sparse {w.pattern} weight just now; leave "
                "`with hf_nm.dense_weights(model):` before finalize"
            )
    inner = unwrap(model)
    for module in list(inner.modules()):
        if isinstance(module, NMLayer):
            make_dense(module)
    for module in inner.modules():
        module.__dict__.pop("_nm_skipped", None)
    return model


def restore(
    model: ModelT, *, method: str | Method | None = None, decay: float | str | None = None
) -> ModelT:
    """Make a loaded sparse checkpoint trainable again, in place, as ``config.nm_sparsity`` says.

    Masks are the non-zero pattern of the weights, pruned parts start at zero.

    Args:
        model: loaded by plain ``from_pretrained``.
        method: another method than the manifest's; needed where that was one of your own.
        decay: another decay than the manifest's, in gradient units, or ``"auto"``.

    Returns:
        ``model``, the same object.

    Raises:
        ValueError: there is no manifest or it is not valid, the model is already sparse, lacks a
            weight that the manifest names, or a weight breaks its pattern (the first such group is
            named).
    """
    check_plain(model)
    claims = recorded(model)
    if not claims:
        raise ValueError(
            f"restore needs a model whose config has {KEY!r}, as hf_nm saves it; for a dense model, "
            "or one without a config to record it in, call hf_nm.sparsify(model)"
        )
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for local, weight in module.named_parameters(recurse=False):
            owners.setdefault(id(weight), []).append((module, local))
    plans: list[tuple[Holder, Manifest, Method, float | str, list[Target]]] = []
    for holder, manifest in claims:
        found = _claimed_targets(holder, manifest, owners)
        own_method = parse_method(manifest.method if method is None else method)
        own_decay = manifest.decay if decay is None else check_decay(decay)
        plans.append((holder, manifest, own_method, own_decay, found))
    done: set[tuple[nn.Module, str]] = set()  # two of these modules may share a weight
    for _, _, own_method, own_decay, found in plans:
        new = [target for target in found if target.owners[0] not in done]
        done.update(target.owners[0] for target in new)
        _convert(model, new, own_method, own_decay)
    for holder, manifest, own_method, own_decay, found in plans:
        _record_in(holder, model, manifest.pattern, own_method, own_decay, found)
    kept_dense = {row.name: f"dense in config.{KEY}" for row in report(model).skipped}
    model._nm_skipped = kept_dense  # type: ignore[assignment]
    return model


def _claimed_targets(
    holder: Holder,
    manifest: Manifest,
    owners: dict[int, list[tuple[nn.Module, str]]],
) -> list[Target]:
    """The weights that a manifest names, which obey it.

    Args:
        holder: whose manifest it is.
        manifest: what it claims.
        owners: id of a parameter to every module of the whole model that holds it.
    """
    uses = {
        (f"{prefix}.{local}" if prefix else local): (module, local)
        for prefix, module in holder.module.named_modules()
        for local, _ in module.named_parameters(recurse=False)
    }
    names = holder.match(manifest.modules, uses)
    if len(names) < len(manifest.modules):
        missing = [name for name in manifest.modules if name not in names]
        raise ValueError(
            f"config.{KEY} names {len(missing)} weights that this {type(holder.module).__name__} does "
            f"not have (first: {missing[0]}); load the checkpoint with the class that saved it"
        )
    found = []
    for claimed, pattern in manifest.modules.items():
        name = holder.prefix + names[claimed]
        module, local = uses[names[claimed]]
        weight = getattr(module, local)
        dim = input_dims(module).get(local)
        if dim is None:
            raise ValueError(
                f"config.{KEY} names {claimed}, a parameter of {type(module).__name__}, which "
                "cannot be N:M"
            )
        check_pattern(name, weight, pattern, dim)
        found.append(Target(name, tuple(weight.shape), dim, pattern, tuple(owners[id(weight)])))
    return found


def _convert(model: nn.Module, found: list[Target], method: Method, decay: float | str) -> None:
    for target in found:  # before anything is changed
        module, local = target.owners[0]
        check_shards(target.name, getattr(module, local), target.pattern, target.dim)
    for target in found:
        module, local = target.owners[0]
        weight = getattr(module, local)
        state = NMState(Spec(target.name, target.pattern, target.dim, method, decay))
        state.project_dense(weight)
        state.follow(weight)
        for owner, name in target.owners:
            make_sparse(owner, {name: state})


def _record(
    model: nn.Module, pattern: NMPattern, method: Method, decay: float | str, found: list[Target]
) -> None:
    """Write the manifests: into each config that is saved, what it is saved with."""
    for holder in holders(model):
        held = {id(module) for module in holder.module.modules()}
        here = [
            target for target in found if any(id(module) in held for module, _ in target.owners)
        ]
        if here:
            _record_in(holder, model, pattern, method, decay, here)


def _record_in(
    holder: Holder,
    model: nn.Module,
    pattern: NMPattern,
    method: Method,
    decay: float | str,
    found: list[Target],
) -> None:
    """Write a manifest into the config of a module."""
    names = {id(module): prefix for prefix, module in holder.module.named_modules()}
    modules, dims = {}, {}
    for target in found:
        module, local = next(owner for owner in target.owners if id(owner[0]) in names)
        prefix = names[id(module)]
        name = saved_name(f"{prefix}.{local}" if prefix else local)
        modules[name] = target.pattern
        if target.dim != -1:
            dims[name] = target.dim
    manifest = Manifest(pattern, method.name, decay, modules, dims=dims)
    write_manifest(holder.module, model, manifest)

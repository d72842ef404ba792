"""Where in a model its manifest stands: in the config of the outermost modules that have one.

Mostly the model has it. A model around others (sentence-transformers', PEFT's, one's own) saves each by
its own ``save_pretrained``, so each has a manifest, with the names that its weights have in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from hf_nm.formats.manifest import KEY, Claims, Manifest, match_names

_ADAPTED = (
    ".base_layer."  # what PEFT puts into the name of a layer that it wraps, until it is merged
)


class Holder(NamedTuple):
    """A module with a config.

    Args:
        prefix: what its parameters' names begin with in the model: empty, or ending in a dot.
        module: the module.
    """

    prefix: str
    module: nn.Module

    @property
    def manifest(self) -> Manifest | None:
        """What its config claims; None where it claims nothing.

        Raises:
            ValueError: the manifest is not valid.
        """
        config = config_of(self.module)
        if config is None:  # one of somebody's own, which is read though nothing is written there
            config = getattr(self.module, "config", None)
        data: Any = config.get(KEY) if isinstance(config, dict) else getattr(config, KEY, None)
        return None if data is None else Manifest.from_dict(data)

    def match(self, claimed: Iterable[str], names: Iterable[str]) -> dict[str, str]:
        """Find a manifest's names among those of this module's parameters.

        Args:
            claimed: names in the manifest.
            names: in the module.

        Returns:
            Claimed name to name in the module, for those found.
        """
        saved = {saved_name(name): name for name in names}
        return {name: saved[there] for name, there in match_names(claimed, saved).items()}


def saved_name(name: str) -> str:
    """The name that a parameter is saved under once adapters around it are merged."""
    return name.replace(_ADAPTED, ".")


def config_of(module: nn.Module) -> Any:
    """The config that is saved with a module: transformers' object, or the dict of a diffusers model;
    None where there is none."""
    # Not getattr: a wrapper would answer for what it wraps.
    config = module.__dict__.get("config")
    if hasattr(config, "save_pretrained"):
        return config
    return module.__dict__.get("_internal_dict") if _is_diffusers(module) else None


def write_manifest(module: nn.Module, model: nn.Module, manifest: Manifest) -> None:
    """Write a manifest into a module's config; nothing where it has none that is saved.

    Args:
        module: one of :func:`holders`.
        model: the model around it: what shares the config has the changed one afterwards.
        manifest: of the module's weights.
    """
    config = config_of(module)
    if config is None:  # a dict or a dataclass of someone's own
        return
    if _is_diffusers(module):
        register: Any = module.register_to_config
        register(**{KEY: manifest.to_dict()})
        return
    own = copy.copy(config)  # others may be built from the same one
    setattr(own, KEY, manifest.to_dict())
    for other in model.modules():
        if other.__dict__.get("config") is config:
            other.__dict__["config"] = own


def _is_diffusers(module: nn.Module) -> bool:
    """Whether the module keeps its config as diffusers' models do: a dict that cannot be changed, with
    a method that makes a new one."""
    own = isinstance(module.__dict__.get("_internal_dict"), dict)
    return own and callable(getattr(type(module), "register_to_config", None))


def holders(model: nn.Module) -> list[Holder]:
    """The outermost modules of a model whose config can be saved, in order; the model alone where it has
    one itself. Empty where there is none."""
    found: list[Holder] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(holder.prefix) for holder in found)
        if not inside and config_of(module) is not None:
            found.append(Holder(f"{name}." if name else "", module))
    return found


def recorded(model: nn.Module) -> list[tuple[Holder, Manifest]]:
    """The manifests of a model, each with the module that has it.

    Raises:
        ValueError: one is not valid.
    """
    places = holders(model) or [Holder("", model)]  # a config of someone's own
    found = [(holder, holder.manifest) for holder in places]
    return [(holder, manifest) for holder, manifest in found if manifest is not None]


def recorded_claims(model: nn.Module) -> Claims:
    """What the manifests of a model claim, by the names in the model; empty where there are none. A
    claimed weight that is not there stays.

    Raises:
        ValueError: a manifest is not valid.
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    claims: Claims = {}
    for holder, manifest in recorded(model):
        own = dict(holder.module.named_parameters())
        matched = holder.match(manifest.modules, own)
        for claimed, pattern in manifest.modules.items():
            there = matched.get(claimed)
            name = holder.prefix + claimed if there is None else first[id(own[there])]
            claims[name] = (pattern, manifest.dims.get(claimed, -1))
    return claims

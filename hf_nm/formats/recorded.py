"""Where in a model its manifest stands: in the config of the outermost modules that have one.

Mostly the model has it. A model around others (sentence-transformers', PEFT's, one's own) saves each by
its own ``save_pretrained``, so each has a manifest, with the names that its weights have in it.
"""

from __future__ import annotations

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
        data: Any = getattr(getattr(self.module, "config", None), KEY, None)
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


def holders(model: nn.Module) -> list[Holder]:
    """The outermost modules of a model whose config can be saved, in order; the model alone where it has
    one itself. Empty where there is none."""
    found: list[Holder] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(holder.prefix) for holder in found)
        # Not getattr: a wrapper would answer for what it wraps.
        if not inside and hasattr(module.__dict__.get("config"), "save_pretrained"):
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

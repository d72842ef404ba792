"""What one N:M weight remembers beside its parameter, and how it passes from ``W`` to ``S`` and back.

This file alone assigns a state's attributes; everything else calls its methods.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hf_nm.methods.fixed import FIXED
from hf_nm.methods.method import Aside, Method
from hf_nm.model.parts import Parts, Spec, obeys
from hf_nm.model.sharding import (
    check_shards,
    chunk,
    is_sharded,
    like_weight,
    local,
    placement_of,
)
from hf_nm.model.watch import Stage, Watch
from hf_nm.processes import several_processes
from hf_nm.sparsity.bits import fingerprint
from hf_nm.sparsity.check import broken_weight
from hf_nm.sparsity.mask import breaks_mask, count_kept, merge_, nm_mask, split_, zero_pruned_
from hf_nm.sparsity.pattern import NMPattern

BY_MASK = 0  # in place of a fingerprint, where none can be compared


class NMState:
    """What one N:M weight remembers beside the parameter.

    Attributes:
        spec: name, pattern, dimension and how it is trained.
        parts: what belongs to the parameter as it is now; None until it leaves the meta device.
        waiting: parts of the whole weight, kept while the parameter is away on the meta device or after
            it was sharded, until they are known to belong to what came back.
        is_dense: whether the parameter holds ``W`` just now (inside a step or ``dense_weights``).
        on_request: whether it does because somebody asked for it (``dense_weights``).
        mask_held: whether the mask stays as it is until the next step (``mask_interval``).
        mask_frozen: whether it stays for good (``freeze_masks_at``): then nothing is kept aside.
        step_pattern: what the next mask that is computed follows; the spec's pattern unless the method
            tightens it. (The present mask's is ``parts.pattern``.)
        restored: after an optimizer's checkpoint gave the parts, the fingerprint of the sparse weight
            that belongs to them; else None.
        watch: notices an optimizer that is not attached.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.parts: Parts | None = None
        self.waiting: Parts | None = None
        self.is_dense = self.on_request = False
        self.mask_held = False
        self.mask_frozen = False
        self.step_pattern = self.spec.pattern_at(0)
        self.restored: int | None = None
        self.watch = Watch()

    # -- read ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return self.spec.name

    @property
    def pattern(self) -> NMPattern:
        """The N:M pattern."""
        return self.spec.pattern

    @property
    def dim(self) -> int:
        """The input dimension, negative."""
        return self.spec.dim

    @property
    def method(self) -> Method:
        """How the weight is trained now: frozen masks as fixed ones, whatever the spec says."""
        return FIXED if self.mask_frozen else self.spec.method

    @property
    def mask(self) -> Tensor | None:
        """``E`` of this process's part; None on the meta device."""
        return None if self.parts is None else self.parts.mask

    @property
    def aside(self) -> Tensor | None:
        """What the method keeps beside this process's part of the sparse weight."""
        return None if self.parts is None else self.parts.aside

    @property
    def updates_mask(self) -> bool:
        """Whether the next projection computes the mask from the dense weight."""
        return self.method.moves_masks and not self.mask_held

    def fits(self, weight: Tensor) -> bool:
        """Whether there are parts, and they belong to a weight that is cut as this one is."""
        return self.parts is not None and self.parts.placement == placement_of(weight)

    def agrees(self, weight: Tensor) -> bool:
        """Whether all processes have settled on the masks of a weight that is cut as this one is."""
        return self.parts is not None and self.parts.agreed and self.fits(weight)

    def obeyed_by(self, weight: Tensor) -> bool:
        """Whether this process's part of the weight is zero where its mask says so."""
        return self.mask is not None and obeys(local(weight), self.mask)

    def breaks(self, weight: Tensor) -> bool:
        """Whether the parameter holds values that its mask does not allow, or its pattern while other
        processes may hold another mask."""
        part = local(weight)
        if self.is_dense or part.device.type == "meta":
            return False
        agreed = self.watch.stage is Stage.STEPPED or is_sharded(weight) or not several_processes()
        if self.mask is not None and self.fits(weight) and agreed:
            return breaks_mask(part, self.mask)
        parts = self.parts or self.waiting
        return parts is not None and not self._follows(part, parts.pattern)

    # -- parts -----------------------------------------------------------------------------------------

    def install(self, parts: Parts, *, restored: int | None = None) -> None:
        """Take ``parts`` as those of the parameter.

        Args:
            parts: of the parameter as it is cut now.
            restored: fingerprint of the sparse weight that they belong to, where a checkpoint gave them.
        """
        self.parts, self.waiting, self.restored = parts, None, restored

    def empty(self) -> None:
        """Forget the parts; what waits stays."""
        self.parts = None

    def agree(self) -> None:
        """All processes have settled on the parts."""
        self.waiting = None
        if self.parts is not None:
            self.parts = replace(self.parts, agreed=True)

    def confirm(self) -> None:
        """The weight was seen to belong to the parts that a checkpoint gave."""
        self.restored = None

    def hold(self, *, held: bool, frozen: bool) -> None:
        """Say whether masks stay until the next step, and whether for good."""
        self.mask_held, self.mask_frozen = held, frozen
        self._keep_what_the_method_keeps()

    def at_step(self, step: int) -> None:
        """Compute masks by the pattern of an optimizer step from now on."""
        self.step_pattern = self.spec.pattern_at(step)

    def _keep_what_the_method_keeps(self) -> None:
        """Drop what is aside where the method in force keeps nothing."""
        if self.parts is None or self.is_dense or self.method.keeps is not Aside.NOTHING:
            return
        if self.parts.aside is not None:
            self.parts = replace(self.parts, aside=None)

    # -- what happens to the parameter -----------------------------------------------------------------

    @torch.no_grad()
    def project_dense(self, weight: Tensor) -> None:
        """Read ``weight`` as a dense one: new mask, new parts, and the sparse weight.

        A mask that does not move is kept where the weight already obeys it. A weight that follows the
        pattern already stays as it is, whatever the method's score and projection: it is a sparse one
        that was loaded. On the meta device only the pattern is recorded.
        """
        check_shards(self.name, weight, self.pattern, self.dim)
        self.restored = self.waiting = None
        self.is_dense = self.on_request = False
        part = local(weight)
        if part.device.type == "meta":
            self.parts = None
            return
        own, agreed = self.parts, self.agrees(weight)
        if own is not None and self._keeps_mask(own, part):
            kept, mask, pattern = True, own.mask, own.pattern
        else:
            kept, pattern = False, self.step_pattern
            mask = nm_mask(part, pattern.n, pattern.m, self.dim)
        extras = self.spec.extras(part, mask)
        self.parts = Parts(mask, pattern, None, extras, placement_of(weight), agreed)
        if self.method.is_plain:
            self._split(part, update_mask=False)
        elif not self._follows(part, pattern):
            self._split(part, update_mask=not kept)
        elif self.method.keeps is not Aside.NOTHING:
            aside = part.clone() if self.method.keeps is Aside.DENSE else torch.zeros_like(part)
            self.parts = replace(self.parts, aside=aside)

    def match_placement(self, weight: Tensor) -> None:
        """Have parts for a parameter that came from the meta device or was sharded, which no hook tells
        of: those from before where the weight obeys their mask, else new ones of its present values.

        A sharded weight that does not obey this process's mask waits for
        :func:`hf_nm.optim.ranks.settle_shards`: it may belong to the first rank's.
        """
        part = local(weight)
        if part.device.type == "meta":
            return
        if self.parts is not None and self.parts.placement is not None and not is_sharded(weight):
            raise RuntimeError(
                f"{self.name} is gathered by FSDP2 just now, after a forward pass; look its weights up "
                "by hf_nm.sparse_weights(model), which shards them again"
            )
        if self.parts is not None and not self.fits(weight):  # sharded, or cut otherwise, since
            check_shards(self.name, weight, self.pattern, self.dim)
            if self.parts.placement is None:
                self.waiting = self.parts
            else:
                warnings.warn(
                    f"{self.name} was sharded anew over other processes, and what belongs to it cannot "
                    "be taken along: its mask is computed from its present values, pruned weights "
                    "start at zero; load the optimizer's checkpoint after sharding to keep them",
                    stacklevel=2,
                )
            self.parts = None
        if self.parts is not None:  # `parameter.data = parameter.data.float()` moves nothing else
            self._follow(part)
            return
        if self.waiting is None:
            self.project_dense(weight)
            return
        came_back = self.waiting.placement == placement_of(weight)  # from the meta device
        own = (
            self.waiting
            if came_back
            else self.waiting.mapped(lambda tensor: chunk(tensor, weight), placement_of(weight))
        )
        if obeys(part, own.mask.to(part.device)):
            self.parts = own
            self._follow(part)
        elif not is_sharded(weight):
            self.project_dense(weight)
        if not is_sharded(weight):
            self.waiting = None

    def after_load(self, weight: Tensor) -> None:
        """Values were loaded into the parameter: they are the sparse weight that the parts belong to,
        or else a dense one."""
        if self.is_dense:  # leaving dense_weights() projects it
            return
        if not self.fits(weight):
            self.match_placement(weight)
            return
        # A checkpoint's parts wait for their weight: the next step compares them.
        if self.restored is None:
            self.project_dense(weight)

    def belongs_to(self, weight: Tensor) -> bool:
        """Whether the weight is the one that the parts of a checkpoint were saved with; by the mask
        alone where the weight is sharded, or was cast since."""
        if not self.obeyed_by(weight):
            return False
        return self.restored in (None, BY_MASK) or self.restored == fingerprint(local(weight))

    def merge(self, weight: Tensor, *, on_request: bool = False) -> Tensor | None:
        """Let the parameter hold ``W``; nothing (None) if it does.

        Where a pruned entry held a value, that was written without projecting. On a CPU the parameter is
        then left as it is; elsewhere, where looking would wait, such values are replaced.

        Args:
            weight: the parameter.
            on_request: whether the dense weight was asked for, and may be saved as such.

        Returns:
            bool scalar tensor: whether a pruned entry held a value.
        """
        if self.is_dense:
            return None
        if self.restored is not None and self.belongs_to(weight):
            self.confirm()  # what is written from here on need not be what was saved
        part = local(weight)
        stray = self._merge(part)
        if part.device.type != "cpu" or not stray:
            self.is_dense, self.on_request = True, on_request
        return stray

    def split(self, weight: Tensor, *, update_mask: bool) -> Tensor | None:
        """Let the parameter hold ``S`` again; nothing (None) if it does.

        Returns:
            int64 scalar tensor: how many mask entries changed.
        """
        if not self.is_dense:
            return None
        try:
            return self._split(local(weight), update_mask=update_mask)
        except BaseException:  # out of a method's own score or projection: by the mask as it is
            assert self.parts is not None
            self.parts.split(local(weight), self.method.keeps, self.dim)
            raise
        finally:
            self.is_dense = self.on_request = False

    def take_as_dense(self) -> None:
        """The parameter was overwritten: what it holds is the dense weight, and nothing is aside."""
        self.is_dense = self.on_request = True
        if self.aside is not None:
            self.aside.zero_()

    def dense(self, weight: Tensor) -> Tensor:
        """``W`` as a new tensor of the weight's shape, sharded as it is."""
        self.match_placement(weight)
        dense = local(weight).clone()
        if not self.is_dense and self.parts is not None:
            self._merge(dense)
        return like_weight(dense, weight)

    def follow(self, weight: Tensor) -> None:
        """Watch the parameter in backward passes."""
        self.watch.follow(weight, self._look, self.name)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast what waits beside the weight, as ``nn.Module._apply`` does the weight."""
        if self.parts is None:
            return
        mask = fn(self.parts.mask).to(torch.bool)  # nn.Module.type(dtype) casts everything
        if mask.device.type == "meta":  # FSDP2 shards there and brings the values back afterwards
            self.waiting, self.parts = self.parts, None
            return
        aside = None if self.parts.aside is None else fn(self.parts.aside)
        extras = {
            name: fn(tensor) if tensor.ndim else tensor.to(mask.device)  # half() is for weights
            for name, tensor in self.parts.extras.items()
        }
        self.parts = replace(self.parts, mask=mask, aside=aside, extras=extras)

    # -- inside ----------------------------------------------------------------------------------------

    def _look(self, parameter: Tensor) -> None:
        if self.breaks(parameter):
            raise broken_weight(
                f"{self.name} ({self.pattern})",
                "an optimizer or other code wrote it without projecting. Call hf_nm.attach(optimizer, "
                "model) before training (NMTrainer does it by itself), and write dense weights inside",
            )

    def _follow(self, part: Tensor) -> None:
        """Be on the device of the weight, and in its dtype."""
        assert self.parts is not None
        self.parts = self.parts.following(part, self.method.keeps)

    def _keeps_mask(self, parts: Parts, part: Tensor) -> bool:
        """Whether a mask that does not move is one of these values, too."""
        if self.updates_mask or not obeys(part, parts.mask):
            return False
        # to_empty() fills a mask with whatever was in memory
        n = parts.pattern.n
        return bool((count_kept(parts.mask, parts.pattern, self.dim) == n).all())

    def _follows(self, part: Tensor, pattern: NMPattern) -> bool:
        """Whether no group holds more than the pattern allows."""
        return bool((count_kept(part, pattern, self.dim) <= pattern.n).all())

    def _merge(self, part: Tensor) -> Tensor:
        """Let ``part`` hold ``W`` in place of ``S``; whether a pruned entry of it held a value."""
        assert self.parts is not None
        if self.method.keeps is not Aside.DENSE or self.aside is None:
            return merge_(part, self.aside, self.parts.mask)
        stray = merge_(part, None, self.parts.mask)
        if part.device.type != "cpu" or not stray:
            part.copy_(self.aside)
        return stray

    def _split(self, part: Tensor, *, update_mask: bool) -> Tensor:
        """Let ``part`` hold ``S`` in place of ``W``, and the parts what belongs to it."""
        method, parts = self.method, self.parts
        assert parts is not None
        if update_mask and parts.pattern != self.step_pattern:
            parts = self.parts = replace(parts, pattern=self.step_pattern)
        pattern = parts.pattern
        if parts.aside is None and method.keeps is not Aside.NOTHING:
            parts = self.parts = replace(parts, aside=torch.zeros_like(part))
        if method.is_plain:
            return split_(part, parts.aside, parts.mask, pattern, self.dim, update_mask=update_mask)
        flips = torch.zeros((), dtype=torch.int64, device=part.device)
        if update_mask:
            scores = part if method.score is None else method.score(part, parts.extras)
            mask = nm_mask(scores, pattern.n, pattern.m, self.dim)
            flips = torch.count_nonzero(mask != parts.mask)
            parts.mask.copy_(mask)
        if method.keeps is Aside.DENSE and method.project is not None and parts.aside is not None:
            parts.aside.copy_(part)
            part.copy_(method.project(part, parts.mask, parts.extras))
            zero_pruned_(part, parts.mask)
        else:
            parts.split(part, method.keeps, self.dim)
        return flips

"""What one N:M weight remembers beside its parameter, and how it passes from ``W`` to ``S`` and back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_nm.methods.method import Method, check_decay
from hf_nm.model.sharding import check_shards, chunk, is_sharded, like_weight, local
from hf_nm.sparsity.bits import fingerprint
from hf_nm.sparsity.check import BrokenPatternError
from hf_nm.sparsity.mask import breaks_mask, count_kept, merge_, nm_mask, split_
from hf_nm.sparsity.pattern import NMPattern


class NMState:
    """What one N:M weight remembers beside the parameter.

    Attributes:
        name: the parameter's name in the model, for messages.
        pattern: the N:M pattern.
        dim: the input dimension of the weight, negative.
        method: how it is trained.
        decay: strength of the SR-STE term, in gradient units.
        mask: ``E``, bool, the weight's shape (of this process's part where it is sharded); None until
            the weight leaves the meta device.
        pruned: ``R``, the mask's shape, the weight's dtype; None where the method keeps none.
        whole: ``(mask, pruned)`` of the whole weight, kept while the parameter is away on the meta
            device or after it was sharded, until they are known to belong to what came back.
        sharded: whether ``mask`` and ``pruned`` are of this process's part of the weight.
        agreed: whether processes agree on the masks of their parts.
        is_dense: whether the parameter holds ``W`` just now (inside a step or ``dense_weights``).
        held: whether masks stay as they are between updates (``mask_interval``, ``freeze_masks_at``).
        attached: whether an optimizer's step is known to project this weight.
        unaligned: whether other processes may hold another mask of this weight until the first step.
        restored: after an optimizer's checkpoint gave ``mask`` and ``pruned``, the
            :func:`~hf_nm.sparsity.bits.fingerprint` of the sparse weight that belongs to them;
            else None.
    """

    def __init__(
        self, name: str, pattern: NMPattern, dim: int, method: Method, decay: float
    ) -> None:
        self.name = name
        self.pattern = pattern
        self.dim = dim
        self.method = method
        self.decay = check_decay(decay)
        self.mask: Tensor | None = None
        self.pruned: Tensor | None = None
        self.whole: tuple[Tensor, Tensor | None] | None = None
        self.sharded = False
        self.agreed = False
        self.is_dense = False
        self.held = False
        self.attached = False
        self.unaligned = False
        self.restored: int | None = None
        self._backwards = 0
        self._usual_backwards = 0
        self._watched: weakref.ref[Tensor] | None = None
        self._watch: Any = None

    @property
    def moves(self) -> bool:
        """Whether the next projection computes the mask from the dense weight."""
        return self.method.moves_masks and not self.held

    def take(self, weight: Tensor) -> None:
        """Read ``weight`` as a dense one: new mask, pruned part and sparse weight.

        A mask that does not move is kept where the weight already obeys it. On the meta device only
        the pattern is recorded.
        """
        check_shards(self.name, weight, self.pattern, self.dim)
        self.restored = self.whole = None
        self.is_dense = False
        self.sharded = is_sharded(weight)
        part = local(weight)
        if part.device.type == "meta":
            self.mask = self.pruned = None
            return
        obeyed = (
            not self.moves
            and self.mask is not None
            and self._obeys(part, self.mask)
            # to_empty() fills a mask with whatever was in memory
            and bool((count_kept(self.mask, self.pattern, self.dim) == self.pattern.n).all())
        )
        if not obeyed:
            self.mask = nm_mask(part, self.pattern.n, self.pattern.m, self.dim)
        assert self.mask is not None
        self.pruned = torch.zeros_like(part) if self.method.moves_masks else None
        split_(part, self.pruned, self.mask, self.pattern, self.dim, update_mask=False)

    def settle(self, weight: Tensor) -> None:
        """Have a mask for a parameter that came from the meta device or was sharded, which nothing
        tells: the one from before where the weight obeys it, else one of its present values.

        A sharded weight that does not obey this process's mask waits for :func:`settle_shards`: it may
        belong to the first rank's.
        """
        part = local(weight)
        if part.device.type == "meta":
            return
        if self.mask is not None and self.sharded and not is_sharded(weight):
            raise RuntimeError(
                f"{self.name} is gathered by FSDP2 just now, after a forward pass; look its weights up "
                "by hf_nm.sparse_weights(model), which shards them again"
            )
        if self.mask is not None and self.sharded != is_sharded(weight):  # sharded since
            self.agreed = False
            check_shards(self.name, weight, self.pattern, self.dim)
            self.whole, self.mask, self.pruned = (self.mask, self.pruned), None, None
        if self.mask is not None:  # `parameter.data = parameter.data.float()` moves nothing else
            self.mask = self.mask.to(part.device)
            if self.pruned is not None:
                self.pruned = self.pruned.to(part)
            return
        if self.whole is None:
            self.take(weight)
            return
        mask, pruned = self.whole
        if self._obeys(part, own := chunk(mask, weight).to(part.device)):
            self.mask, self.sharded = own, is_sharded(weight)
            self.pruned = None if pruned is None else chunk(pruned, weight).to(part)
        elif not is_sharded(weight):
            self.take(weight)
        if not is_sharded(weight):
            self.whole = None

    def receive(self, weight: Tensor) -> None:
        """Values were loaded into the parameter: they are the sparse weight that mask and pruned part
        belong to, or else a dense one."""
        if self.is_dense:  # leaving dense_weights() projects it
            return
        part = local(weight)
        if self.mask is None or self.sharded != is_sharded(weight):
            self.settle(weight)
            return
        belongs = self.restored is not None and (
            self._obeys(part, self.mask)
            if is_sharded(weight)
            else self.restored == fingerprint(part)
        )
        if not belongs:
            self.take(weight)

    @staticmethod
    def _obeys(part: Tensor, mask: Tensor) -> bool:
        """Whether the local part of a weight is zero where a mask says so."""
        return mask.shape == part.shape and not breaks_mask(part, mask)

    def merge(self, weight: Tensor) -> None:
        """Let the parameter hold ``W = S + R``; nothing if it does."""
        if not self.is_dense:
            if self.pruned is not None:
                merge_(local(weight), self.pruned)
            self.is_dense = True

    def split(self, weight: Tensor, *, update_mask: bool) -> Tensor | None:
        """Let the parameter hold ``S`` again; nothing (None) if it does.

        Returns:
            int64 scalar tensor: how many mask entries changed.
        """
        if not self.is_dense:
            return None
        assert self.mask is not None
        flips = split_(
            local(weight), self.pruned, self.mask, self.pattern, self.dim, update_mask=update_mask
        )
        self.is_dense = False
        return flips

    def dense(self, weight: Tensor) -> Tensor:
        """``W = S + R`` as a new tensor of the weight's shape, sharded as it is."""
        self.settle(weight)
        dense = local(weight).clone()
        if not self.is_dense and self.pruned is not None:
            merge_(dense, self.pruned)
        return like_weight(dense, weight)

    def breaks(self, weight: Tensor) -> bool:
        """Whether the parameter holds values that its mask does not allow, or its pattern while ranks
        have not agreed on a mask."""
        part = local(weight)
        if self.is_dense or part.device.type == "meta":
            return False
        if self.mask is not None and self.sharded == is_sharded(weight) and not self.unaligned:
            return breaks_mask(part, self.mask)
        if self.mask is None and self.whole is None:
            return False
        return bool((count_kept(part, self.pattern, self.dim) > self.pattern.n).any())

    def watch(self, weight: Tensor) -> None:
        """Notice, in the backward pass, that an optimizer wrote dense values.

        Nothing else tells: fused optimizers and ``.data`` writes leave a parameter's version
        counter alone. While no optimizer is attached every backward looks; afterwards only some
        of those that come without a step for longer than usual, which costs an attached run
        nothing and still finds an optimizer that took its place.
        """
        if self._watched is not None and self._watched() is weight:
            return

        def look(parameter: Tensor) -> None:
            self._backwards += 1
            count = self._backwards
            overdue = count > max(1, self._usual_backwards) and count & (count - 1) == 0
            due = (overdue or not self.attached) and not self.unaligned
            if due and self.breaks(parameter):
                raise BrokenPatternError(
                    f"{self.name} ({self.pattern}) holds values where its mask says zero: an optimizer "
                    "or other code wrote it without projecting. Call hf_nm.attach(optimizer, model) "
                    "before training (NMTrainer does it by itself), and write dense weights inside "
                    "`with hf_nm.dense_weights(model):`"
                )

        if not weight.is_leaf:  # computed by a parametrization
            return
        frozen = not weight.requires_grad
        if frozen:  # the hook needs a leaf that requires grad, and stays when it is frozen again
            weight.requires_grad_(True)
        self._watch = weight.register_post_accumulate_grad_hook(look)
        if frozen:
            weight.requires_grad_(False)
        self._watched = weakref.ref(weight)

    def unwatch(self) -> None:
        """Stop watching the parameter."""
        if self._watch is not None:
            self._watch.remove()
        self._watch = self._watched = None

    def stepped(self) -> None:
        """An attached optimizer reached this weight."""
        self.attached = True
        self._usual_backwards = max(self._usual_backwards, self._backwards)
        self._backwards = 0

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast what waits beside the weight, as ``nn.Module._apply`` does the weight."""
        if self.mask is None:
            return
        mask = fn(self.mask).to(torch.bool)  # nn.Module.type(dtype) casts everything
        if mask.device.type == "meta":  # FSDP2 shards there and brings the values back afterwards
            self.whole, self.mask, self.pruned = (self.mask, self.pruned), None, None
            return
        self.mask = mask
        if self.pruned is not None:
            self.pruned = fn(self.pruned)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is attached to no optimizer, and hooks belong to the original's parameter.
        fresh = {
            "attached": False,
            "unaligned": False,
            "_backwards": 0,
            "_watch": None,
            "_watched": None,
        }
        return self.__dict__ | fresh

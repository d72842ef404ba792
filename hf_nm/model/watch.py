"""Noticing, in backward passes, that an optimizer trains a sparse weight that it was not attached to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from enum import Enum
from typing import Any

from torch import Tensor

from hf_nm.processes import ask_at_the_next_step


class Stage(Enum):
    """How far the training of a weight has come.

    Attributes:
        UNATTACHED: no optimizer is known to project it.
        ATTACHED: one is attached. Of several processes, others may hold another mask until it steps.
        STEPPED: it has stepped, so that all processes hold the same mask.
    """

    UNATTACHED = 0
    ATTACHED = 1
    STEPPED = 2


class Watch:
    """Looks at a parameter after its gradient was accumulated.

    Nothing else tells: fused optimizers and ``.data`` writes leave a parameter's version counter alone.
    While no optimizer is attached every backward looks; afterwards only some of those that come without
    a step for longer than usual, which costs an attached run nothing and still finds an optimizer that
    took its place. A copy watches nothing and starts unattached: hooks belong to the original's
    parameter.

    Attributes:
        stage: how far the training of the weight has come.
    """

    def __init__(self) -> None:
        self.stage = Stage.UNATTACHED
        self._backwards = 0  # since the last step
        self._usual_backwards = 0
        self._parameter: weakref.ref[Tensor] | None = None
        self._hook: Any = None

    def follow(self, weight: Tensor, look: Callable[[Tensor], None], name: str) -> None:
        """Call ``look`` with the parameter after those backward passes that need it. Of several
        processes one that did not attach, where others did, is found at its first step."""
        if self._parameter is not None and self._parameter() is weight:
            return
        if not weight.is_leaf:  # computed by a parametrization
            return

        def after_backward(parameter: Tensor) -> None:
            self._backwards += 1
            if self.stage is Stage.UNATTACHED:
                is_attached = lambda: self.stage is not Stage.UNATTACHED  # noqa: E731
                ask_at_the_next_step(parameter, name, is_attached)
            if self._is_due():
                look(parameter)

        frozen = not weight.requires_grad
        if frozen:  # the hook needs a leaf that requires grad, and stays when it is frozen again
            weight.requires_grad_(True)
        self._hook = weight.register_post_accumulate_grad_hook(after_backward)
        if frozen:
            weight.requires_grad_(False)
        self._parameter = weakref.ref(weight)

    def _is_due(self) -> bool:
        if self.stage is Stage.UNATTACHED:
            return True
        count = self._backwards
        return count > max(1, self._usual_backwards) and count & (count - 1) == 0

    def stop(self) -> None:
        """Stop watching the parameter."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._parameter = None

    def attached(self) -> None:
        """An optimizer was attached to this weight."""
        self.stage = max(self.stage, Stage.ATTACHED, key=lambda stage: stage.value)

    def stepped(self) -> None:
        """An attached optimizer steps."""
        self.stage = Stage.STEPPED
        self._usual_backwards = max(self._usual_backwards, self._backwards)
        self._backwards = 0

    def detached(self) -> None:
        """The optimizer was detached."""
        self.stage = Stage.UNATTACHED

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return Watch()

    def __reduce__(self) -> Any:
        return Watch, ()

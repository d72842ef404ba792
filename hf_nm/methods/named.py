"""The methods that have a name: ``"sr-ste"``, ``"ste"``, ``"fixed"``."""

from __future__ import annotations

from hf_nm.methods.fixed import FIXED
from hf_nm.methods.method import Method
from hf_nm.methods.sr_ste import SR_STE
from hf_nm.methods.ste import STE

METHODS = {method.name: method for method in (SR_STE, STE, FIXED)}


def parse_method(method: str | Method) -> Method:
    """The method of that name, or a :class:`Method` as it is.

    Raises:
        ValueError: no method has that name.
    """
    if isinstance(method, Method):
        return method
    if method in METHODS:
        return METHODS[method]
    names = ", ".join(repr(name) for name in METHODS)
    raise ValueError(
        f"method must be one of {names} or a Method, but got {method!r}; "
        "use method='sr-ste' for the paper's"
    )

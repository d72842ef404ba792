"""Let the site show names in docstrings as code: ``:func:`hf_nm.attach``` reads ``attach``."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of the docstrings as they are read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Take an object's docstring, without the role and the path of each name."""
        if obj.docstring is not None:
            value = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", obj.docstring.value)
            obj.docstring.value = value.replace("``", "`")

"""What an N:M pattern is: a frozen, validated value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class NMPattern:
    """``n`` weights **kept** of every ``m`` consecutive ones along a layer's input dimension.

    ``NMPattern(2, 4)`` prints as ``2:4``, the pattern that sparse tensor cores run.

    Args:
        n: entries kept per group, ``1 <= n < m``.
        m: entries per group.

    Raises:
        TypeError: ``n`` or ``m`` is not an ``int``.
        ValueError: not ``1 <= n < m``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("m", self.m)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"an N:M pattern needs integers, but {name}={value!r} is a "
                    f"{type(value).__name__}; write NMPattern(2, 4) for 2 kept of every 4"
                )
        if not 1 <= self.n < self.m:
            raise ValueError(
                f"an N:M pattern needs 1 <= n < m (n kept of every m), but n={self.n}, m={self.m}; "
                "write NMPattern(2, 4) for 2 kept of every 4"
                + ("; n = m would be dense" if self.n == self.m else "")
            )

    @classmethod
    def parse(cls, text: str | NMPattern) -> NMPattern:
        """Read ``"2:4"``; a pattern is returned as it is.

        Raises:
            ValueError: the text is not two integers with a colon between them.
        """
        if isinstance(text, cls):
            return text
        parts = text.split(":") if isinstance(text, str) else []
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f'an N:M pattern is written "n:m", such as "2:4"; got {text!r}')
        return cls(int(parts[0]), int(parts[1]))

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero."""
        return 1.0 - self.n / self.m

    def divides(self, size: int) -> bool:
        """Whether an input dimension of ``size`` entries is made of whole groups."""
        return size > 0 and size % self.m == 0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

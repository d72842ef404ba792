"""The pattern as a value: what is accepted, how it prints, compares and divides."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from hf_nm import NMPattern


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 16), (3, 7), (1, 2), (31, 64)])
def test_valid(n: int, m: int) -> None:
    pattern = NMPattern(n, m)
    assert (pattern.n, pattern.m) == (n, m)
    assert str(pattern) == f"{n}:{m}"
    assert NMPattern.parse(str(pattern)) == pattern
    assert NMPattern.parse(pattern) is pattern


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (0, 4), (-1, 4), (1, 1), (1, 0), (2, -4)])
def test_out_of_range(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=rf"1 <= n < m .*n={n}, m={m}"):
        NMPattern(n, m)


def test_n_equal_to_m_says_that_this_is_dense() -> None:
    with pytest.raises(ValueError, match="would be dense"):
        NMPattern(4, 4)


@pytest.mark.parametrize(
    ("n", "m"), [(2.0, 4), (2, 4.0), ("2", 4), (2, None), (True, 4), (1, True)]
)
def test_not_integers(n: object, m: object) -> None:
    with pytest.raises(TypeError, match="needs integers"):
        NMPattern(n, m)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":4", "2:4:8", "2/4", "a:b", "-2:4", "2.0:4", "²:4", None, 24, (2, 4)]
)
def test_text_that_is_no_pattern(text: object) -> None:
    with pytest.raises(ValueError, match='"2:4"'):
        NMPattern.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["4:4", "0:4", "4:2"])
def test_text_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= n < m"):
        NMPattern.parse(text)


def test_is_a_frozen_value() -> None:
    pattern = NMPattern(2, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.n = 1  # type: ignore[misc]
    assert pattern == NMPattern(2, 4) != NMPattern(1, 4)
    assert {pattern: "a"}[NMPattern(2, 4)] == "a"
    assert sorted([NMPattern(2, 4), NMPattern(1, 8), NMPattern(1, 4)])[0] == NMPattern(1, 4)
    assert pickle.loads(pickle.dumps(pattern)) == pattern


def test_sparsity() -> None:
    assert NMPattern(2, 4).sparsity == 0.5
    assert NMPattern(1, 4).sparsity == 0.75


def test_divides() -> None:
    pattern = NMPattern(2, 4)
    assert [size for size in range(13) if pattern.divides(size)] == [4, 8, 12]

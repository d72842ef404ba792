"""The YAML at the top of a card: as the Hub reads it, and what is refused."""

from __future__ import annotations

import pytest
from hub_repos import update

from hf_nm.hub.readme import read_metadata

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "front",
    [
        BOMB,
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: " + "[" * 5000 + "\n",
        "a: " + "9" * 5000 + "\n",
        "a: !!timestamp x\n",
        "a: !!bool x\n",
        "a: !!int x\n",
    ],
    ids=["laughs", "itself", "itself in a mapping", "deep", "long", "timestamp", "bool", "int"],
)
def test_metadata_that_takes_memory_or_time(front: str) -> None:
    """Red if a few lines of metadata raise what says nothing of the card; this does not end where
    aliases are expanded."""
    with pytest.raises(ValueError, match=r"at the top of README\.md is not valid YAML"):
        update(f"---\n{front}---\n# Mine\n", tags=["2:4"])


def test_aliases_are_written_out() -> None:
    """Red if a card with a plain alias, as PyYAML writes them, is refused, or gets new ones."""
    card = update("---\na: &x [b, c]\nd: *x\n---\n# Mine\n", tags=["2:4"])
    assert read_metadata(card) == {"a": ["b", "c"], "d": ["b", "c"], "tags": ["2:4"]}
    assert "*" not in card.partition("# Mine")[0]


def test_a_rule_inside_the_metadata() -> None:
    """Red if "---" within a value ends the metadata."""
    card = update("---\na: b ---\nc: d\n---\n# Mine\n", tags=["2:4"])
    assert read_metadata(card) == {"a": "b ---", "c": "d", "tags": ["2:4"]}


def test_yaml_as_the_hub_reads_it() -> None:
    """Red if PyYAML's own rules come back: a pattern is the number 124, Norwegian is false."""
    text = "---\nlanguage: no\ntags:\n- 2:4\ny: 1.5e-3\nz: 2024-01-01\nt: true\nn:\n---\n"
    read = {"language": "no", "tags": ["2:4"], "y": 0.0015, "z": "2024-01-01", "t": True}
    assert read_metadata(text) == read | {"n": None}
    again = update(text, license="mit")
    assert read_metadata(again) == read | {"n": None, "license": "mit"}


@pytest.mark.parametrize("front", ["a: [", "- a\n- b", "text", "a: !!python/object:os.system x"])
def test_metadata_that_is_none(front: str) -> None:
    with pytest.raises(ValueError, match=r"top of README\.md"):
        update(f"---\n{front}\n---\n# x\n")

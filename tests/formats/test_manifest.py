"""The manifest: what it accepts from a config.json, and how it finds its weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

import hf_nm
from hf_nm import NMPattern
from hf_nm.formats.manifest import KEY, Manifest, match_names

GOOD: dict[str, Any] = {
    "version": 1,
    "n": 2,
    "m": 4,
    "method": "sr-ste",
    "decay": 2e-4,
    "modules": {"a.b.weight": "2:4", "a.c.weight": "1:8"},
    "hf_nm": "0.1.0",
}


def test_literal() -> None:
    manifest = Manifest.from_dict(GOOD)
    assert manifest == Manifest(
        NMPattern(2, 4),
        "sr-ste",
        2e-4,
        {"a.b.weight": NMPattern(2, 4), "a.c.weight": NMPattern(1, 8)},
        "0.1.0",
    )
    assert manifest.to_dict() == GOOD


def test_round_trip_through_json() -> None:
    manifest = Manifest(NMPattern(3, 7), "mine", 0.0, {"x.weight": NMPattern(1, 16)})
    assert manifest.hf_nm == hf_nm.__version__
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_names_that_torch_allows() -> None:
    modules = {"layers.0.en/de weight": "2:4", "blöcke.0.weight": "2:4"}
    assert set(Manifest.from_dict(GOOD | {"modules": modules}).modules) == set(modules)


BAD = {
    "no object": [],
    "a string": "2:4",
    "null": None,
    "another version": GOOD | {"version": 2},
    "a version that is a string": GOOD | {"version": "1"},
    "a version that is true": GOOD | {"version": True},
    "a version that is a fraction": GOOD | {"version": 1.0},
    "no version": {key: value for key, value in GOOD.items() if key != "version"},
    "a field missing": {key: value for key, value in GOOD.items() if key != "decay"},
    "a field too many": GOOD | {"class": "os.system"},
    "n = m": GOOD | {"n": 4},
    "n = 0": GOOD | {"n": 0},
    "n a string": GOOD | {"n": "2"},
    "n a fraction": GOOD | {"n": 2.0},
    "n true": GOOD | {"n": True},
    "m null": GOOD | {"m": None},
    "method not a name": GOOD | {"method": "os.system('x')"},
    "method a class path": GOOD | {"method": {"class": "x"}},
    "method empty": GOOD | {"method": ""},
    "decay negative": GOOD | {"decay": -1.0},
    "decay infinite": GOOD | {"decay": float("inf")},
    "decay NaN": GOOD | {"decay": float("nan")},
    "decay beyond a float": GOOD | {"decay": 10**400},
    "decay a string": GOOD | {"decay": "2e-4"},
    "decay true": GOOD | {"decay": True},
    "modules a list": GOOD | {"modules": ["a.b.weight"]},
    "modules empty": GOOD | {"modules": {}},
    "a module's name with a line break": GOOD | {"modules": {"a\nb": "2:4"}},
    "a module's name empty": GOOD | {"modules": {"": "2:4"}},
    "a module's name too long": GOOD | {"modules": {"a" * 513: "2:4"}},
    "a module's name no string": GOOD | {"modules": {1: "2:4"}},
    "a module's pattern no pattern": GOOD | {"modules": {"a": "24"}},
    "a module's pattern out of range": GOOD | {"modules": {"a": "4:4"}},
    "a module's pattern a number": GOOD | {"modules": {"a": 2}},
    "a module's pattern endless": GOOD | {"modules": {"a": "1:" + "9" * 10_000}},
    "hf_nm a number": GOOD | {"hf_nm": 1},
    "hf_nm with a control character": GOOD | {"hf_nm": "0.1\x1b[0m"},
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    """Red if a manifest that we never write is accepted, or fails otherwise than by ValueError."""
    with pytest.raises(ValueError, match=KEY) as raised:
        Manifest.from_dict(BAD[case])
    assert len(str(raised.value)) < 500, "a file's content must not flood the message"


def test_unknown_version_names_the_writer() -> None:
    with pytest.raises(ValueError, match=r"version 7, .* reads version 1; .*\('9\.9'\)"):
        Manifest.from_dict({"version": 7, "hf_nm": "9.9"})


def test_match_names() -> None:
    available = ["bert.encoder.0.weight", "bert.encoder.1.weight", "classifier.weight"]
    shorter = ["encoder.0.weight", "encoder.1.weight"]
    longer = ["bert.encoder.0.weight", "bert.encoder.1.weight"]
    assert match_names(longer, available) == dict(zip(longer, longer, strict=True))
    assert match_names(shorter, available) == dict(zip(shorter, longer, strict=True))
    assert match_names(longer, shorter) == dict(zip(longer, shorter, strict=True))
    assert match_names(["encoder.2.weight"], available) == {}


def test_match_names_where_two_would_do() -> None:
    """Red if one of two weights is picked, or two claims end at one weight."""
    both = ["encoder.layers.0.weight", "decoder.layers.0.weight"]
    assert match_names(["layers.0.weight"], both) == {}
    assert match_names(both, ["layers.0.weight"]) == {}
    assert match_names(both, both) == dict(zip(both, both, strict=True))

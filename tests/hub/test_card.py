"""The card: what it says from data alone, and what it keeps of somebody else's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hub_repos import check_card, update

import hf_nm
from hf_nm.checkpoint.model_class import needs_own_code, opened_by
from hf_nm.formats.manifest import Manifest
from hf_nm.hub.card import CardFacts, card_metadata, card_text
from hf_nm.hub.facts import _recipe_of_run
from hf_nm.hub.readme import (
    BEGIN,
    END,
    compose,
    has_changed,
    is_edited,
    merge_metadata,
    read_card,
    read_metadata,
    renew,
    update_readme,
)
from hf_nm.model.report import LayerRow, Report, SkippedRow
from hf_nm.optim.sad_log import read_history

P24, P14 = hf_nm.NMPattern(2, 4), hf_nm.NMPattern(1, 4)
ROWS = [
    LayerRow("layer.10.weight", P24, (4, 8), 16),
    LayerRow("layer.2.weight", P24, (4, 8), 15),
    LayerRow("layer.0.a|b`c", P14, (2, 4, 8), 16),
]
REPORT = Report(ROWS, [SkippedRow("embed.weight", (10, 8), "not claimed")])
MANIFEST = Manifest(P24, "sr-ste", 2e-4, {"x": P24})


def facts(**changes: Any) -> CardFacts:
    return CardFacts("me/model", **{"report": REPORT, "manifest": MANIFEST} | changes)


# -- what it says -----------------------------------------------------------------------------------


def test_numbers() -> None:
    """Red if a number of the table is not that of the report, or layer 10 comes before layer 2."""
    text = card_text(facts())
    assert "| 2:4 | 2 | 64 | 31 | 48.44% |" in text
    assert "| 1:4 | 1 | 64 | 16 | 25.00% |" in text
    assert "| dense | 1 | 80 |  |  |" in text
    assert "| `layer.0.a\\|bc` | 2x4x8 | 1:4 | 16 | 25.00% |" in text
    assert text.index("layer.0") < text.index("layer.2.") < text.index("layer.10.")
    assert "| method | sr-ste, decay 0.0002 |" in text
    text = card_text(facts(manifest=Manifest(P24, "sr-ste", "auto", {"x": P24})))
    assert "| method | sr-ste, decay auto |" in text


def test_speed_is_not_promised() -> None:
    """Red if the card promises a speed that nobody measured, or a kernel that does not exist."""
    both = card_text(facts())
    assert "zeros alone make a model neither faster nor smaller" in both
    assert "sparse tensor cores" in both
    assert "Common hardware has none for 1:4." in both
    only = card_text(facts(report=Report(ROWS[2:], [])))
    assert "sparse tensor cores" not in only


def test_scores() -> None:
    """Red if recovery is turned round, or a score is compared with nothing."""
    scores = [
        hf_nm.Score("accuracy", 0.9, "glue", "validation", dense=0.92),
        hf_nm.Score("perplexity", 20.0, "wikitext", dense=18.0, higher_is_better=False),
        hf_nm.Score("BLEU", 27.0, "wmt14", signature="a|b"),
        hf_nm.Score("gain", 0.0, "x", dense=0.0),
    ]
    text = card_text(facts(scores=scores))
    assert "| accuracy | glue, validation | 0.9 | 0.92 | -0.02 | 97.8% |" in text
    assert "| perplexity | wikitext, test | 20 | 18 | +2 | 90.0% |" in text
    assert "| BLEU | wmt14, test | 27 | - | - | - |" in text
    assert "| gain | x, test | 0 | 0 | +0 | - |" in text
    assert "BLEU: `a|b`\n" in text


def test_interval_beside_dense() -> None:
    """Red if the interval is not that of the difference, or is explained where there is none."""
    with_interval = hf_nm.Score("BLEU", 35.47, "x", dense=36.07, interval=(-1.59, 0.33))
    text = card_text(facts(scores=[with_interval]))
    assert "| BLEU | x, test | 35.47 | 36.07 | -0.6 [-1.59, +0.33] | 98.3% |" in text
    assert "paired bootstrap" in text
    without = hf_nm.Score("BLEU", 35.47, "x", dense=36.07)
    assert "bootstrap" not in card_text(facts(scores=[without]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": (0.0, 1.0)}, "and dense"),
        ({"interval": (1.0, 0.0), "dense": 1.0}, "the lower first"),
        ({"interval": (float("nan"), 0.0), "dense": 1.0}, "finite bounds"),
        ({"value": float("nan")}, "must be finite"),
        ({"dense": float("inf")}, "must be finite"),
        ({"metric": ""}, "name of its metric"),
    ],
)
def test_score_that_is_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hf_nm.Score(**{"metric": "BLEU", "value": 1.0, "data": "x"} | changes)


def test_metadata() -> None:
    """Red if the Hub would refuse it: a model-index without a task, a tag that is no text."""
    score = hf_nm.Score("Exact match", 0.5, "rajpurkar/squad", signature="s")
    for task in (None, "question-answering"):
        data = card_metadata(facts(scores=[score], task=task, base_model=["a/b", "c/d"]))
        card = update_readme(None, "x", data, {}, "model")
        assert check_card(card) == ([], [])
        assert read_metadata(card) == data
        assert ("model-index" in data) == (task is not None)
    (result,) = data["model-index"][0]["results"]
    dataset = {"type": "rajpurkar/squad", "name": "rajpurkar/squad", "split": "test"}
    assert result["dataset"] == dataset
    assert result["metrics"][0]["type"] == "exact-match"
    assert data["tags"] == ["sparse", "sparsity", "hf-nm", "2:4", "1:4"]


def test_dense_model() -> None:
    dense = facts(report=None, manifest=None)
    assert "tags" not in card_metadata(dense)
    assert card_text(dense).strip().startswith("## How to use")
    assert "hf_nm" not in card_text(dense)


def test_snippet() -> None:
    text = card_text(facts(loads_with="AutoModelX", processor="AutoTokenizer", revision="v1"))
    assert "from transformers import AutoModelX, AutoTokenizer\n" in text
    assert 'tokenizer = AutoTokenizer.from_pretrained("me/model", revision="v1")\n' in text


def test_a_class_beside_the_weights() -> None:
    """Red if a reader is told to open a model by a class that does not know it."""
    config = {"model_type": "own", "architectures": ["OwnForImageClassification"]}
    config["auto_map"] = {"AutoConfig": "own.A", "AutoModelForImageClassification": "own.B"}
    auto, task = opened_by(config)
    assert (auto, task) == ("AutoModelForImageClassification", "image-classification")
    assert needs_own_code(config)
    assert not needs_own_code(config | {"architectures": ["BertModel"]})
    assert not needs_own_code(config | {"auto_map": ["AutoModel"]})
    text = card_text(facts(loads_with=auto, own_code=True))
    assert f'model = {auto}.from_pretrained("me/model", trust_remote_code=True)\n' in text


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "[" * 100_000, '{"log_history": 1}', '{"log_history": [1]}'),
        *('{"log_history": [{"step": "1"}]}', '{"log_history": [{"step": 1, "nm/sad": "x"}]}'),
        *('{"log_history": [{"step": 1, "nm/sad": 3}]}', '{"global_step": "x"}', "\ud800"),
    ],
)
def test_a_damaged_trainer_state(text: str, tmp_path: Path) -> None:
    """Red if a card is drawn from it, or an error does not name the file."""
    (tmp_path / "trainer_state.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_history, lambda folder: _recipe_of_run(folder, {})):
        with pytest.raises(ValueError, match=r"trainer_state\.json"):
            read(tmp_path)


def test_history_of_a_stopped_run(tmp_path: Any) -> None:
    row = {"step": 1, "nm/sad": 4, "nm/flip_rate": 0.5, "nm/sad_init": 4}
    (tmp_path / "nm_sad.jsonl").write_text(json.dumps(row) + '\n{"st')
    with pytest.warns(UserWarning, match="1 damaged lines"):
        assert read_history(tmp_path) == [row]


HOSTILE = f"x `{END}\n{END} <img src=a> [y](javascript:z) *b* \x1b"


def test_nothing_in_it_is_obeyed(tmp_path: Path) -> None:
    """Texts from files, in every place of the card. Red if HTML, a link or our own end marker comes out
    of one: a second update would leave half of the old part outside."""
    score = hf_nm.Score(HOSTILE, 0.5, HOSTILE, HOSTILE, signature=HOSTILE)
    run = {"method": "dense", "steps": 1, "time": {"train_s": 1.0}, "command": HOSTILE}
    run |= {"versions": {HOSTILE: HOSTILE}, "score": {"metric": "m", "test": 1.0, "signature": "s"}}
    (tmp_path / "results.json").write_text(json.dumps(run))
    recipe = _recipe_of_run(tmp_path, {})
    row = LayerRow(f"a{END}", P24, (4, 8), 16)
    given = {"scores": [score], "recipe": recipe, "base_model": f"a/{END}", "task": "x"}
    data = facts(report=Report([row], []), **given)
    text = card_text(data)
    assert END not in text
    shown = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))
    assert not re.search(r"<(?!/?details>|/?summary>)|\[y\]\(|(?<!\\)\*b", shown)
    card = compose(data, None, {})
    assert compose(data, card, {}) == card
    assert card.count(END) == 2  # the other is the base model's, in the metadata
    (tmp_path / "results.json").unlink()
    saved = {"nm_sparsity": MANIFEST.to_dict(), "transformers_version": HOSTILE}
    assert "<" not in _recipe_of_run(tmp_path, saved)["saved with"]


@pytest.mark.parametrize("results", ["x", ["x"], [{"task": "x"}], [{"task": {}, "metrics": ["x"]}]])
def test_results_of_another_form(results: Any) -> None:
    """Red if a model-index that somebody wrote otherwise raises, or is thrown away."""
    score = hf_nm.Score("BLEU", 1.0, "wmt14")
    ours = card_metadata(facts(scores=[score], task="translation"))
    merged = merge_metadata({"model-index": [{"name": "n", "results": results}]}, ours, {})
    (model,) = merged["model-index"]
    assert model["results"][-1]["metrics"][0]["name"] == "BLEU"
    assert model["results"][:-1] == (results if isinstance(results, list) else [])


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"README\.md is not text in UTF-8"):
        read_card(tmp_path)


# -- what it keeps ----------------------------------------------------------------------------------


def test_new_card() -> None:
    card = update(None, tags=["2:4"], license="mit")
    assert card.startswith("---\ntags:\n- '2:4'\nlicense: mit\n---\n\n# model\n\n" + BEGIN)
    assert card.endswith(f"PART\n{END}\n")
    assert update("---\nlicense: apache-2.0\n---\n").startswith(
        "---\nlicense: apache-2.0\n---\n\n# model\n"
    )


@pytest.mark.parametrize(
    "own",
    [
        "# Mine\n\nText.\n",
        "---\nlicense: mit # why\ntags: [a,   b]\n---\n# Mine\r\n\r\nText.\r\n",
        f"# Mine\n{BEGIN}\nhalf a part\n\n## Mine too\n",
        f"# Mine\n{END}\nText.\n",
        f"# Mine\n{BEGIN}\nlost\n\nMine.\n{BEGIN}\nold\n{END}\nText.\n",
        "---\nno front matter",
    ],
)
def test_everything_else_stays(own: str) -> None:
    """Red if a push changes a character outside the markers, or adds a second part."""
    first = update(own, "one")
    second = update(first, "two")
    for card, part in ((first, "one"), (second, "two")):
        assert card.count(part) == 1
        newline = "\r\n" if "\r\n" in own else "\n"
        begin = card.rindex(BEGIN)
        end = card.index(END, begin) + len(END)
        outside = card[:begin] + card[end:]
        old = f"{BEGIN}\nold\n{END}"
        expected = own.replace(old, "").replace("\r\n", "\n")
        assert outside.replace("\r\n", "\n").rstrip() == expected.rstrip()
        assert card.count("\n") == card.count(newline)
    assert "one" not in second
    assert update(second, "two") == second


def test_part_is_not_taken_for_its_end() -> None:
    card = update(None, f"a {END} b {BEGIN} c")
    assert "a  b  c" in card
    assert update(card, "new").count("new") == 1
    assert "b  c" not in update(card, "new")


def test_in_front_of_what_a_program_wrote() -> None:
    """Red if our part stands behind pages of 'More information needed'."""
    trainer = "<!-- This model card has been generated automatically ... -->\n# x\n\n## Model\n"
    template = "# x\n\nThis model card has been automatically generated.\n\n## Model Details\n"
    for text in (trainer, template):
        card = update(text)
        assert card.index("PART") < card.index("## Model")


def test_who_wrote_it() -> None:
    """Red if a program's text counts as a person's, or a person's as a program's."""
    generated = "<!-- This model card has been generated automatically -->\n# x\n"
    for text, person in ((None, False), (generated, False), ("# Mine\n", True)):
        card = update(text, license="mit")
        assert is_edited(text) is is_edited(card) is person
        assert not has_changed(card)
        metadata = card.replace("license: mit", "license: apache-2.0")
        assert has_changed(metadata)
        assert is_edited(metadata) is person
        assert is_edited(update(metadata)) is person
        written = card.replace(f"{END}", f"{END}\n\nMore.")
        assert has_changed(written)
        assert is_edited(written)
        again = update(written)
        assert is_edited(again)
        assert not has_changed(again)
        ours = card.replace("PART", "somebody wrote into our part")
        assert not has_changed(ours)
    assert has_changed("# Mine\n")


def test_renew() -> None:
    comment = "<!-- This model card has been generated automatically -->"
    generated = f"---\nlicense: mit\ntags: [t]\n---\n{comment}\n# new\n"
    assert renew(None, generated, False) == generated
    old = update(generated.replace("# new", "# old"), tags=["2:4"], language="no")
    card = renew(old.replace("license: mit", "license: bsd"), generated, False)
    assert "# new" in card
    assert read_metadata(card) == {"license": "bsd", "tags": ["t"], "language": "no"}
    assert "# old" in renew(old, generated, True)


@pytest.mark.parametrize(
    ("present", "found", "stated", "expected"),
    [
        ({"license": "mit"}, {"license": "x"}, {}, {"license": "mit"}),
        ({"license": "mit"}, {}, {"license": "x"}, {"license": "x"}),
        ({"license": None}, {"license": "x"}, {}, {"license": "x"}),
        ({"tags": "a"}, {"tags": ["b", "a"]}, {}, {"tags": ["a", "b"]}),
        ({"tags": ["1:4", "a"]}, {"tags": ["2:4"]}, {}, {"tags": ["a", "2:4"]}),
        ({"datasets": ["a"]}, {}, {"datasets": ["b"]}, {"datasets": ["a", "b"]}),
        ({"my": {"own": 1}}, {}, {}, {"my": {"own": 1}}),
    ],
)
def test_merged_metadata(present: dict, found: dict, stated: dict, expected: dict) -> None:
    assert merge_metadata(present, found, stated) == expected


def test_merged_results() -> None:
    """Red if a result of somebody else is lost, or ours is there twice."""

    def index(*metrics: tuple[str, float], split: str = "test") -> list[dict[str, Any]]:
        rows = [{"type": name, "name": name, "value": value} for name, value in metrics]
        data = {"name": "d", "type": "d", "split": split}
        return [
            {"name": "m", "results": [{"task": {"type": "t"}, "dataset": data, "metrics": rows}]}
        ]

    def merged(present: Any, ours: Any) -> Any:
        return merge_metadata({"model-index": present}, {"model-index": ours}, {})["model-index"]

    assert merged(None, index(("a", 1.0))) == index(("a", 1.0))
    assert merged("broken", index(("a", 1.0))) == index(("a", 1.0))
    assert merged(index(("a", 1.0), ("b", 2.0)), index(("a", 3.0))) == index(("b", 2.0), ("a", 3.0))
    other = merged(index(("a", 1.0), split="validation"), index(("a", 3.0)))
    assert [row["metrics"][0]["value"] for row in other[0]["results"]] == [1.0, 3.0]

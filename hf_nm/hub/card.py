"""What a sparse model's card says: text and metadata, from data alone."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hf_nm.formats.manifest import Manifest
from hf_nm.hub.scores import Score
from hf_nm.model.report import LayerRow, Report

TAGS = ("sparse", "sparsity", "hf-nm")


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card is made of.

    Args:
        repo_id: where the model is (``name/model``), for the snippet.
        report: what :func:`hf_nm.verify` found in the weights; None if they claim nothing.
        packed: whether the weights are in the packed form.
        manifest: what ``config.json`` claims.
        scores: the model's, with the dense model's beside them.
        recipe: what to know about the training: name to value, shown as a table.
        sad: from :func:`hf_nm.optim.sad_log.sad_summary`.
        plot: file name of the plot of SAD beside the card.
        base_model: what training started from: an id on the Hub, or several.
        task: the Hub's name for what the model does (``pipeline_tag``).
        loads_with: the class of transformers that opens the model.
        own_code: whether its class is in a file beside the weights.
        processor: the class that opens its tokenizer or image processor.
        revision: the branch it is on, if not ``main``.
    """

    repo_id: str
    report: Report | None = None
    packed: bool = False
    manifest: Manifest | None = None
    scores: Sequence[Score] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sad: Mapping[str, float] | None = None
    plot: str | None = None
    base_model: str | Sequence[str] | None = None
    task: str | None = None
    loads_with: str = "AutoModel"
    own_code: bool = False
    processor: str | None = None
    revision: str | None = None


def card_text(facts: CardFacts) -> str:
    """The part of the card that this package writes, as Markdown."""
    parts = [_sparsity(facts), _scores(facts), _usage(facts), _training(facts)]
    return "\n".join(part for part in parts if part)


def card_metadata(facts: CardFacts) -> dict[str, Any]:
    """The metadata that goes with it; see https://huggingface.co/docs/hub/model-cards."""
    data: dict[str, Any] = {"library_name": "transformers"}
    if facts.base_model:
        several = not isinstance(facts.base_model, str)
        data["base_model"] = list(facts.base_model) if several else facts.base_model
    if facts.task:
        data["pipeline_tag"] = facts.task
    if facts.report is not None:
        data["tags"] = [*TAGS, *patterns_of(facts.report)]
    if facts.scores:
        data["metrics"] = list(dict.fromkeys(_slug(score.metric) for score in facts.scores))
    if facts.scores and facts.task:  # a model-index without a task is refused
        results = [_result(score, facts.task) for score in facts.scores]
        data["model-index"] = [{"name": _name(facts.repo_id), "results": results}]
    return data


def _sparsity(facts: CardFacts) -> str:
    if facts.report is None:
        return ""
    layers = sorted(facts.report.layers, key=_by_number)
    groups = defaultdict(list)
    for row in layers:
        groups[row.pattern].append(row)
    dense = sum(math.prod(row.shape) for row in facts.report.skipped)
    table = [("pattern", "weights", "entries", "not zero", "kept")]
    for pattern, rows in groups.items():
        entries, kept = sum(math.prod(row.shape) for row in rows), sum(row.kept for row in rows)
        table.append(
            (str(pattern), str(len(rows)), f"{entries:,}", f"{kept:,}", _share(kept, entries))
        )
    table.append(("dense", str(len(facts.report.skipped)), f"{dense:,}", "", ""))
    each = [("weight", "shape", "pattern", "not zero", "kept")]
    for row in layers:
        size = "x".join(str(length) for length in row.shape)
        share = _share(row.kept, math.prod(row.shape))
        each.append((code(row.name), size, str(row.pattern), f"{row.kept:,}", share))
    n_of_m = " and ".join(
        f"at most {pattern.n} of every {pattern.m} consecutive weights ({pattern})"
        for pattern in groups
    )
    bases = [facts.base_model] if isinstance(facts.base_model, str) else facts.base_model or []
    base = ", ".join(f"[{plain(name)}](https://huggingface.co/{quote(name)})" for name in bases)
    lines = [
        "## N:M sparsity\n",
        f"The weight matrices listed below are N:M sparse: along their input dimension {n_of_m} are not "
        "zero. "
        + (
            "The file is packed: the kept values and one bit for each weight.\n"
            if facts.packed
            else "The file holds ordinary tensors with exact zeros.\n"
        ),
        f"Base model: {base}.\n" if base else "",
        _table(table),
        "Counted by `hf_nm.verify` in the very files of this push: no group keeps more than its pattern "
        'allows. "dense" are the other weights of two dimensions or more.\n',
        f"<details>\n<summary>Each of the {len(layers)} sparse weights</summary>\n",
        _table(each),
        "</details>\n",
    ]
    return "\n".join(line for line in lines if line)


def _scores(facts: CardFacts) -> str:
    if not facts.scores:
        return ""
    table: list[Sequence[str]] = [
        ("metric", "data", "this model", "dense model", "difference", "recovery")
    ]
    for score in facts.scores:
        data = f"{score.data}, {score.split}"
        row = [plain(score.metric), plain(data), _number(score.value), "-", "-", "-"]
        if score.dense is not None:
            row[3:5] = [_number(score.dense), f"{score.value - score.dense:+.4g}"]
        if score.interval is not None:
            row[4] += " [{}]".format(", ".join(f"{bound:+.3g}" for bound in score.interval))
        if score.recovery is not None:
            row[5] = f"{score.recovery:.1%}"
        table.append(row)
    lines = ["## Score\n", _table(table)]
    signed = {
        f"{plain(score.metric)}: {code(score.signature)}\n"
        for score in facts.scores
        if score.signature
    }
    lines += sorted(signed)
    if any(score.interval is not None for score in facts.scores):
        lines.append(
            "In brackets: the 95% interval of the difference, from a paired bootstrap over the data's "
            "examples. It says how far the choice of examples moves it, not another training.\n"
        )
    return "\n".join(lines)


def _usage(facts: CardFacts) -> str:
    opened = f'"{facts.repo_id}"'
    if facts.revision not in (None, "main"):
        opened += f', revision="{facts.revision}"'
    classes = [facts.loads_with, *([facts.processor] if facts.processor else [])]
    lines = [f"from transformers import {', '.join(sorted(classes))}\n"]
    if facts.packed:
        lines.insert(0, "import hf_nm  # transformers alone cannot read the packed form")
    trusted = ", trust_remote_code=True" if facts.own_code else ""
    lines.append(f"model = {facts.loads_with}.from_pretrained({opened}{trusted})")
    if facts.processor:
        name = "tokenizer" if facts.processor == "AutoTokenizer" else "processor"
        lines.append(f"{name} = {facts.processor}.from_pretrained({opened})")
    text = "## How to use\n\n```python\n" + "\n".join(lines) + "\n```\n"
    if facts.report is None:
        return text
    needed = "Nothing but transformers is needed."
    if facts.own_code:
        needed += " (The model's class is in the file beside the weights, which this runs.)"
    if facts.packed:
        needed = (
            "`hf-nm unpack` turns it into plain safetensors, which need nothing but transformers."
        )
    gain = "not faster" if facts.packed else "neither faster nor smaller"
    speed = (
        f"{needed} To train on with the zeros kept, call `hf_nm.restore(model)` first.\n\n"
        f"**Speed:** zeros alone make a model {gain}. It takes a kernel or an engine that skips them"
    )
    if "2:4" in patterns_of(facts.report):
        speed += (
            ": for 2:4, the sparse tensor cores of NVIDIA GPUs from Ampere on, by way of TensorRT "
            "(`--sparsity=enable`) or PyTorch's semi-structured tensors"
        )
    others = [pattern for pattern in patterns_of(facts.report) if pattern != "2:4"]
    if others:
        speed += f". Common hardware has none for {' and '.join(others)}"
    return f"{text}\n{speed}. Nothing was measured for this card.\n"


def _training(facts: CardFacts) -> str:
    recipe: dict[str, Any] = {}
    if facts.manifest is not None:
        recipe["method"] = facts.manifest.method
        if facts.manifest.method == "sr-ste":
            decay = facts.manifest.decay
            recipe["method"] += f", decay {decay if isinstance(decay, str) else f'{decay:g}'}"
    recipe |= {name: value for name, value in facts.recipe.items() if value is not None}
    if not recipe and facts.sad is None:
        return ""
    lines = ["## Training\n"]
    if recipe:
        lines.append(_table([("", ""), *((name, _said(value)) for name, value in recipe.items())]))
    if facts.sad is not None:
        moved = (
            f"How far the masks moved (SAD, mask entries that differ): {facts.sad['total']:,.0f} "
            f"summed over {facts.sad['intervals']:,.0f} logging intervals up to step "
            f"{facts.sad['steps']:,.0f}, {facts.sad['from_start']:,.0f} between the start and the end; "
            f"{facts.sad['mean_flip_rate']:.2e} of the N:M weights flipped per step."
        )
        lines.append(f"{moved}\n")
        if facts.plot is not None:
            lines.append(f"![SAD and training loss by step]({facts.plot})\n")
    return "\n".join(lines)


def _result(score: Score, task: str) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": _slug(score.metric),
        "name": _unmarked(score.metric),
        "value": score.value,
    }
    if score.signature:
        metric["args"] = {"signature": _unmarked(score.signature)}
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", score.data)
    kind = score.data if is_id else _slug(score.data)
    data = {"type": kind, "name": _unmarked(score.data), "split": _unmarked(score.split)}
    return {"task": {"type": task}, "dataset": data, "metrics": [metric]}


def patterns_of(report: Report | None) -> list[str]:
    """The patterns that occur, such as ``["2:4"]``."""
    if report is None:
        return []
    return list(dict.fromkeys(str(row.pattern) for row in report.layers))


def _name(repo_id: str) -> str:
    return repo_id.rpartition("/")[2]


def _slug(text: str) -> str:
    """A name as the Hub's lists have it: ``BLEU`` is ``bleu``, ``Multi 30k`` is ``multi-30k``."""
    return re.sub(r"[^\w./-]+", "-", text.strip().lower()).strip("-") or "unnamed"


def _share(kept: int, entries: int) -> str:
    return f"{kept / entries:.2%}" if entries else "-"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _said(value: Any) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _by_number(row: LayerRow) -> list[tuple[int, int, str]]:
    """Sorts layer 2 before layer 10; a loaded config has them in the order of the alphabet."""
    pieces = re.split(r"(\d+)", row.name)
    return [(1, int(piece), "") if piece.isdecimal() else (0, 0, piece) for piece in pieces]


def code(text: str) -> str:
    """Inline code of any text: in one line, and without what ends the code, or our part of the card."""
    return f"`{_unmarked(_one_line(text).replace('`', ''))}`"


def plain(text: str) -> str:
    """Any text as Markdown that shows it: no HTML, link, image or code comes of it."""
    return re.sub(r"[\\`*\[\]~]", r"\\\g<0>", _one_line(text)).replace("<", "&lt;")


def _unmarked(text: str) -> str:
    return text.replace("<!--", "< !--")


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = (
            cell.replace("|", "\\|").replace("\n", " ").replace("<!--", "&lt;!--") for cell in cells
        )
        return f"| {' | '.join(escaped)} |\n"

    head, *body = rows
    return line(head) + line(["---"] * len(head)) + "".join(line(row) for row in body)

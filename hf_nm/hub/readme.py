"""How one part of a model card is kept up to date, while the rest stays its author's.

The part lies between two markers. It records fingerprints of everything else, so that a card which
somebody has edited can be told from one that only programs have written. Metadata is merged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from hf_nm.hub.card import CardFacts, card_metadata, card_text
from hf_nm.sparsity.pattern import NMPattern
from hf_nm.version import __version__

BEGIN = "<!-- hf_nm: begin -->"

END = "<!-- hf_nm: end -->"

_PART = re.compile(f"{BEGIN}(?:(?!{BEGIN}).)*?{END}", re.DOTALL)

_NOTE = "<!-- rewritten at each push; the text around this part is kept ({}) -->"

_NOTED = re.compile(re.escape(_NOTE).replace(r"\{\}", "([0-9a-f]{8})-([0-9a-f]{8})(, edited)?"))

_FRONT = re.compile(r"\s*---\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)

_GENERATED = "<!-- This model card has been generated automatically"  # transformers' Trainer

_TEMPLATE = "This model card has been automatically generated."  # transformers' model.push_to_hub

Metadata = dict[str, Any]

CARD = "README.md"

_MOST_VALUES = 100_000  # in a card's metadata


def update_readme(
    text: str | None,
    part: str,
    found: Metadata,
    stated: Metadata,
    title: str,
    edited: bool | None = None,
) -> str:
    """The card with ``part`` in it: where it was, or else at the end.

    Args:
        text: the card as it is; None starts one with ``title``.
        part: Markdown, without the markers.
        found: metadata that holds where the card says nothing else. Lists and results are joined.
        stated: metadata that holds in any case.
        title: heading of a card that has no text yet.
        edited: whether a person wrote the text; None is found out from it.

    Raises:
        ValueError: the card's metadata is not valid YAML, or not a mapping.
    """
    text = text or ""
    edited = is_edited(text) if edited is None else edited
    newline = "\r\n" if "\r\n" in text else "\n"
    text = text.replace("\r\n", "\n")
    before, body = _with_metadata(text, found, stated)
    first, rest = _cut(body)
    if not rest.strip():
        body = f"\n# {title}\n\n\0\n"
    elif first is not None:
        body = rest[:first] + "\0" + rest[first:]
    elif (_GENERATED in rest or _TEMPLATE in rest) and "\n## " in rest:
        # above its many "More information needed"
        body = rest.replace("\n## ", "\n\0\n\n## ", 1)
    else:
        body = rest.rstrip("\n") + "\n\n\0\n"
    rest = body.replace("\0", "")
    note = _NOTE.format(f"{_fingerprint(rest)}-{_fingerprint(before + rest)}{', edited' * edited}")
    part = part.replace(BEGIN, "").replace(END, "").strip()
    body = body.replace("\0", f"{BEGIN}\n{note}\n{part}\n{END}")
    return (before + body).replace("\n", newline)


def renew(card: str | None, generated: str, edited: bool) -> str:
    """``card`` with a newly ``generated`` text, unless a person ``edited`` it; metadata is merged."""
    if card is None:
        return generated
    before, body = _with_metadata(card, read_metadata(generated), {})
    return before + (body if edited else generated[len(_front(generated)[0]) :])


def is_edited(text: str | None) -> bool:
    """Whether a person ever wrote into the card's text, so that it must not be made anew."""
    if not text or not text.strip():
        return False
    noted = _noted(text)
    if noted is None:
        return _GENERATED not in text
    text = text.replace("\r\n", "\n")
    return bool(noted[3]) or noted[1] != _fingerprint(_cut(text[len(_front(text)[0]) :])[1])


def has_changed(text: str) -> bool:
    """Whether somebody changed the card or its metadata since our part was last brought up to date."""
    noted = _noted(text)
    return noted is None or noted[2] != _fingerprint(_cut(text.replace("\r\n", "\n"))[1])


def read_metadata(text: str | None) -> Metadata:
    """The metadata at the top of a card; empty if there is none."""
    return _front((text or "").replace("\r\n", "\n"))[1]


def merge_metadata(data: Metadata, found: Metadata, stated: Metadata) -> Metadata:
    """``data`` with what it lacks from ``found``, and with ``stated`` over it.

    Lists are joined. Of the tags that are patterns only those in ``found`` stay: others speak of
    weights that were there before.
    """
    merged = dict(data)
    for source in (found, stated):
        for key, value in source.items():
            present = merged.get(key)
            if key == "model-index":
                merged[key] = _merge_results(present, value)
            elif isinstance(value, list):
                kept = [
                    item
                    for item in _as_list(present)
                    if key != "tags" or item in value or source is stated or not _is_pattern(item)
                ]
                merged[key] = kept + [item for item in value if item not in kept]
            elif source is stated or present in (None, "", []):
                merged[key] = value
    return merged


def _with_metadata(text: str, found: Metadata, stated: Metadata) -> tuple[str, str]:
    """The block of metadata with more in it, and the text below."""
    before, data = _front(text)
    merged = merge_metadata(data, found, stated)
    body = text[len(before) :]
    if merged != data:  # an untouched block keeps its comments and order
        dumped = yaml.dump(merged, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        before = f"---\n{dumped}---\n"
    return before, body


def _merge_results(present: Any, ours: list[Metadata]) -> list[Metadata]:
    """A model-index with our numbers in place of those for the same task, data and metric."""
    if not isinstance(present, list) or not present or not isinstance(present[0], dict):
        return ours
    there = present[0].get("results")
    results = list(there) if isinstance(there, list) else []
    for new in (result for model in ours for result in model["results"]):
        place = (new["task"].get("type"), new["dataset"])
        for position, old in enumerate(results):
            if not _is_result(old):
                continue
            if (old["task"].get("type"), old.get("dataset")) == place:
                names = {(metric["type"], metric["name"]) for metric in new["metrics"]}
                others = [
                    metric
                    for metric in old.get("metrics") or []
                    if (metric.get("type"), metric.get("name")) not in names
                ]
                results[position] = old | {"metrics": others + new["metrics"]}
                break
        else:
            results.append(new)
    return [present[0] | {"results": results}, *present[1:]]


def _is_result(data: Any) -> bool:
    """Whether an entry that somebody wrote has the form of a result."""
    metrics = data.get("metrics") or [] if isinstance(data, dict) else None
    return (
        isinstance(metrics, list)
        and all(isinstance(metric, dict) for metric in metrics)
        and isinstance(data.get("task"), dict)
    )


def _front(text: str) -> tuple[str, Metadata]:
    found = _FRONT.match(text)
    if found is None:
        return "", {}
    try:
        data = yaml.load(found[1], Loader=_Loader)
    except Exception as error:  # PyYAML has no one name for what a tag or a number can be wrong in
        raise ValueError(
            f"the metadata at the top of README.md is not valid YAML: {error}"
        ) from error
    if not isinstance(data, dict | None):
        raise ValueError(
            "the metadata at the top of README.md must be 'key: value' lines, but is a "
            f"{type(data).__name__}"
        )
    return found[0], data or {}


def _noted(text: str) -> re.Match[str] | None:
    found = _PART.search(text)
    return _NOTED.search(found[0]) if found else None


def _cut(text: str) -> tuple[int | None, str]:
    """Where our part begins, and the text without it."""
    found = _PART.search(text)
    return (found.start() if found else None), _PART.sub("", text)


def _fingerprint(rest: str) -> str:
    lines = "\n".join(line.rstrip() for line in rest.splitlines())
    return hashlib.sha256(re.sub(r"\n{2,}", "\n\n", lines).strip().encode()).hexdigest()[:8]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_pattern(tag: Any) -> bool:
    try:
        NMPattern.parse(tag)
    except (TypeError, ValueError):
        return False
    return True


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, as the Hub reads them.

    PyYAML's are those of 1.1, where ``language: no`` is false, and the tag ``2:4`` the number 124.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own form)

    def get_single_node(self) -> Any:
        """The document. Aliases are read as what they stand for; a few lines of them may stand for
        more than any memory holds."""
        node = super().get_single_node()
        if node is not None:
            _size(node, {})
        return node


class _Dumper(yaml.SafeDumper):
    """Everything written out: other readers of cards know no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _size(node: Any, sizes: dict[int, int]) -> int:
    """How many values a document has, those that aliases stand for among them; ``sizes`` is filled."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES  # of one that holds itself
        parts = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    if sizes[id(node)] > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES:,} values, or one that holds itself")
    return sizes[id(node)]


for _tag, _form, _starts in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_starts)
    )


def compose(
    facts: CardFacts, card: str | None, stated: Mapping[str, Any], edited: bool | None = None
) -> str:
    """``card`` with our part brought up to date; see :func:`hf_nm.hub.readme.update_readme`."""
    name = facts.repo_id.rpartition("/")[2]
    return update_readme(card, card_text(facts), card_metadata(facts), dict(stated), name, edited)


def newest_card(local: str | None, there: str | None) -> str | None:
    """The card to go on from: the local one, unless somebody has edited the one on the Hub."""
    if local is None or (there is not None and has_changed(there)):
        return there
    return local


def read_card(folder: Path) -> str | None:
    """A folder's card with its line ends as they are."""
    path = folder / CARD
    return _decoded(path.read_bytes(), str(path)) if path.is_file() else None


def remote_card(
    repo_id: str, revision: str | None, token: bool | str | None, retries: int = 2
) -> str | None:
    """The card on the Hub as it is now, if there is one."""
    answer = http_backoff(
        "GET",
        hf_hub_url(repo_id, CARD, revision=revision),
        headers=build_hf_headers(token=token, library_name="hf_nm", library_version=__version__),
        max_retries=retries,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    )
    try:
        hf_raise_for_status(answer)
    except (RemoteEntryNotFoundError, RevisionNotFoundError):
        return None
    return _decoded(answer.content, f"{CARD} of {repo_id}")


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not text in UTF-8: {error}; save it as such") from error

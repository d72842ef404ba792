"""Publishing on the Hub: verified weights, with a card that says what they are."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CommitInfo, HfApi
from torch import nn

from hf_nm.formats.folder import RESUMING
from hf_nm.formats.links import files_of
from hf_nm.hub.facts import (
    PLOT,
    base_of,
    draw_sad,
    facts_of,
)
from hf_nm.hub.readme import (
    CARD,
    compose,
    newest_card,
    read_card,
    read_metadata,
    remote_card,
)
from hf_nm.hub.scores import Score, read_scores
from hf_nm.model.weights import unwrap
from hf_nm.optim.sad_log import read_history
from hf_nm.version import __version__

# Weights of an earlier push in another form would be loaded, or packed, instead of this one's.
_REPLACED = ["model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin*"]


def push_to_hub(
    model_or_folder: nn.Module | str | Path,
    repo_id: str,
    *,
    processing_class: Any = None,
    scores: Score | Sequence[Score] | None = None,
    dense_run: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    pipeline_tag: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    commit_message: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Verify a sparse model, and put it on the Hub with a card.

    The repository is made if it is not there, and so is a branch named by ``revision``. A card that
    is there keeps its text and metadata: only the part between our two markers is written anew. No
    local file is changed. Of a run's folder what only resuming needs stays here (checkpoints,
    optimizer, random states, ``training_args.bin``).

    Args:
        model_or_folder: a transformers model, or a folder that ``save_pretrained`` or a Trainer wrote.
        repo_id: ``"you/model"``.
        processing_class: of a model: the tokenizer or processor to push with it.
        scores: for the card. Without it a recipe's ``results.json`` in the folder is read.
        dense_run: folder of the recipe's dense run, whose score is put beside that one.
        base_model: the Hub's id of what training started from.
        license: as the Hub abbreviates it, such as ``"apache-2.0"``.
        language: codes such as ``"de"``.
        datasets: ids on the Hub.
        pipeline_tag: the task, where the model's class does not tell.
        recipe: more about the training, name to value, for the card's table.
        commit_message: by default ``"Upload N:M sparse model"``.
        private: whether a new repository is private; None leaves it to your account's default.
        revision: a branch other than ``main``.
        token: your token; by default the one that ``hf auth login`` or ``HF_TOKEN`` set.
        create_pr: open a pull request instead of committing.

    Returns:
        The commit, as ``huggingface_hub.HfApi.upload_folder`` returns it.

    Raises:
        BrokenPatternError: a group keeps more than n; nothing was sent.
        ValueError: a claimed weight is missing, a config, card or result is not valid, or a link leaves
            the folder (weights may lie elsewhere).
        FileNotFoundError: there is no such folder, or no model in it.
        TypeError: not a transformers model.
        huggingface_hub.errors.HfHubHTTPError: whatever the Hub refuses. After a broken upload push
            again: files that arrived are not sent twice.
    """
    with ExitStack() as stack:
        if isinstance(model_or_folder, nn.Module):
            model = _publishable(model_or_folder)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            model.save_pretrained(folder)
            if processing_class is not None:
                processing_class.save_pretrained(folder)
            found_base = base_of(model, repo_id)
        else:
            folder, found_base = Path(model_or_folder), None
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"push_to_hub found no folder {folder}; pass a model, or the folder that "
                    "save_pretrained or a Trainer wrote"
                )
        files = _published(folder)  # before anything of it is read: no link leaves it
        if scores is None:
            scores = read_scores(folder, dense_run)
        elif dense_run is not None:
            raise ValueError(
                "dense_run belongs to results.json; give Score(..., dense=...) instead"
            )
        # Everything that can be wrong here is found before anything is sent.
        facts = facts_of(
            folder,
            repo_id,
            scores=[scores] if isinstance(scores, Score) else scores,
            base_model=base_model or found_base,
            task=pipeline_tag,
            recipe=recipe,
            revision=revision,
        )
        if facts.report is None:
            warnings.warn(
                "the config has no nm_sparsity, so nothing claims to be N:M: it is pushed as a dense "
                "model, with a card that says nothing of sparsity",
                stacklevel=2,
            )
        stage = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _link_files(folder, files, stage)
        drawn = (stage / PLOT).exists() or draw_sad(
            read_history(folder), stage / PLOT, facts.report
        )
        facts = replace(facts, plot=PLOT if drawn else None)
        local = read_card(folder)
        stated = _stated(license, language, datasets, base_model, pipeline_tag)
        read_metadata(local)

        api = HfApi(library_name="hf_nm", library_version=__version__)
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        there = remote_card(repo_id, revision, token)
        card = compose(replace(facts, repo_id=repo_id), newest_card(local, there), stated)
        (stage / CARD).write_text(card, encoding="utf-8", newline="")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=stage,
            commit_message=commit_message or "Upload N:M sparse model",
            revision=revision,
            token=token,
            create_pr=create_pr,
            delete_patterns=_REPLACED,
        )


def _publishable(model: nn.Module) -> Any:
    model = unwrap(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(
            f"push_to_hub needs a transformers model or a folder, but got {type(model).__name__}; "
            "save it yourself and push that with huggingface_hub.upload_folder"
        )
    return model


def _published(folder: Path) -> list[Path]:
    """The files of ``folder`` that are published, relative to it, and its card."""

    def is_left(file: Path) -> bool:
        return (
            any(fnmatch(file.name, kind) for kind in RESUMING)
            or (file.parent == Path() and file.name.startswith("_"))
            or fnmatch(file.as_posix(), "pytorch_model*.bin*")
        )

    return list(files_of(folder, is_left))


def _link_files(folder: Path, files: list[Path], stage: Path) -> None:
    """Links in ``stage`` to what is published of ``folder``: its own files stay as they are."""
    for name in files:
        if name == Path(CARD):
            continue
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (stage / name).symlink_to((folder / name).resolve())
        except OSError:  # Windows, without the right to make links
            shutil.copy2(folder / name, stage / name)


def _stated(
    license: str | None,
    language: str | Sequence[str] | None,
    datasets: str | Sequence[str] | None,
    base_model: str | None,
    pipeline_tag: str | None,
) -> dict[str, Any]:
    lists = {"language": language, "datasets": datasets}
    stated: dict[str, Any] = {
        name: [value] if isinstance(value, str) else list(value)
        for name, value in lists.items()
        if value is not None
    }
    words = {"license": license, "base_model": base_model, "pipeline_tag": pipeline_tag}
    return stated | {name: value for name, value in words.items() if value is not None}

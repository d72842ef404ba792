"""Publishing on the Hub: verified weights, with a card that says what they are."""

from __future__ import annotations

import json
import re
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
from huggingface_hub import CommitInfo, HfApi, constants, hf_hub_url
from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff
from torch import nn

from hf_nm import compat
from hf_nm.card import CardFacts, card_metadata, card_text, patterns_of
from hf_nm.checkpoint import verify
from hf_nm.folder import RESUMING
from hf_nm.manifest import KEY, Manifest
from hf_nm.readme import has_changed, read_metadata, update_readme
from hf_nm.report import Report
from hf_nm.results import Score, plot_sad, read_history, read_scores, sad_summary
from hf_nm.stored import is_packed_config
from hf_nm.version import __version__
from hf_nm.wrapping import unwrap

CARD = "README.md"
PLOT = "sad.png"
# Weights of an earlier push in another form would be loaded, or packed, instead of this one's.
_REPLACED = ["model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin*"]
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Auto classes with the table of model types in transformers and the Hub's task. The first that knows a
# model's class opens it: some classes are in several tables.
_AUTO = [
    ("AutoModelForImageTextToText", "IMAGE_TEXT_TO_TEXT", "image-text-to-text"),
    ("AutoModelForSpeechSeq2Seq", "SPEECH_SEQ_2_SEQ", "automatic-speech-recognition"),
    ("AutoModelForSeq2SeqLM", "SEQ_TO_SEQ_CAUSAL_LM", None),
    ("AutoModelForCausalLM", "CAUSAL_LM", "text-generation"),
    ("AutoModelForSequenceClassification", "SEQUENCE_CLASSIFICATION", "text-classification"),
    ("AutoModelForTokenClassification", "TOKEN_CLASSIFICATION", "token-classification"),
    ("AutoModelForQuestionAnswering", "QUESTION_ANSWERING", "question-answering"),
    ("AutoModelForMultipleChoice", "MULTIPLE_CHOICE", "multiple-choice"),
    ("AutoModelForMaskedLM", "MASKED_LM", "fill-mask"),
    ("AutoModelForImageClassification", "IMAGE_CLASSIFICATION", "image-classification"),
    ("AutoModelForObjectDetection", "OBJECT_DETECTION", "object-detection"),
    ("AutoModelForCTC", "CTC", "automatic-speech-recognition"),
    ("AutoModelForAudioClassification", "AUDIO_CLASSIFICATION", "audio-classification"),
]
_TRANSLATES = {"marian", "fsmt", "m2m_100", "nllb-moe"}  # other text-to-text models do many things


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
        ValueError: a claimed weight is missing, or a config, card or result is not valid.
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
        _link_files(folder, stage)
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


def facts_of(folder: Path, repo_id: str, **known: Any) -> CardFacts:
    """What there is to say of a saved model: verified, and read from the files beside it.

    Args:
        folder: written by ``save_pretrained`` or a Trainer.
        repo_id: where it will be.
        **known: other fields of :class:`~hf_nm.card.CardFacts`; None is found out here.

    Raises:
        BrokenPatternError: a group keeps more than n.
        ValueError: the files do not hold what the config claims.
        FileNotFoundError: there is no model in the folder.
    """
    config = _read_config(folder)
    found: dict[str, Any] = {}
    if config.get(KEY) is not None or not config:  # without a config verify says what is wrong
        found["report"] = verify(folder)
        found["manifest"] = Manifest.from_dict(config[KEY])
    found["packed"] = is_packed_config(config)
    found["loads_with"], found["task"] = _opened_by(config)
    found["processor"] = _processor(folder, config)
    found["sad"] = sad_summary(read_history(folder))
    found["recipe"] = _recipe_of_run(folder, config)
    known = {name: value for name, value in known.items() if value is not None}
    return CardFacts(repo_id, **found | known)


def compose(
    facts: CardFacts, card: str | None, stated: Mapping[str, Any], edited: bool | None = None
) -> str:
    """``card`` with our part brought up to date; see :func:`hf_nm.readme.update_readme`."""
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
    return path.read_bytes().decode("utf-8-sig") if path.is_file() else None


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
    return answer.content.decode("utf-8-sig")


def base_of(model: Any, repo_id: str) -> str | None:
    """Which model of the Hub this one was loaded from, if from another."""
    name = getattr(getattr(model, "config", None), "name_or_path", None)
    if not isinstance(name, str) or not _REPO_ID.fullmatch(name):
        return None
    return None if name == repo_id or Path(name).exists() else name


def draw_sad(history: Sequence[dict], path: Path, report: Report | None) -> bool:
    """Draw SAD beside the loss, if it was logged and matplotlib is there; whether it was drawn."""
    if not any("nm/sad" in row for row in history):
        return False
    try:
        plot_sad(history, path, " ".join(patterns_of(report)))
    except ModuleNotFoundError:
        return False
    return True


def holds_sparse_weights(folder: Path) -> bool:
    """Whether there are weights in a folder, and a config that claims something of them."""
    return KEY in _read_config(folder) and any(folder.glob("*.safetensors"))


def said_versions(versions: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The libraries that trained a model, in a line; the system is nobody's business."""
    claimed = config.get(KEY) or {}
    known = {"hf_nm": claimed["hf_nm"]} if "hf_nm" in claimed else {}
    known |= {name: number for name, number in versions.items() if name != "system"}
    return ", ".join(f"{name} {number}" for name, number in known.items())


def _publishable(model: nn.Module) -> Any:
    model = unwrap(model)
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(
            f"push_to_hub needs a transformers model or a folder, but got {type(model).__name__}; "
            "save it yourself and push that with huggingface_hub.upload_folder"
        )
    return model


def _link_files(folder: Path, stage: Path) -> None:
    """Links in ``stage`` to what is published of ``folder``: its own files stay as they are."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in files:
        kept_back = any(fnmatch(part, kind) for part in Path(name).parts for kind in RESUMING)
        if (
            kept_back
            or name == CARD
            or name.startswith("_")
            or fnmatch(name, "pytorch_model*.bin*")
        ):
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


def _opened_by(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The class of transformers that opens a model, and its task on the Hub."""
    kind, named = str(config.get("model_type")), config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or not name.isidentifier():
        return "AutoModel", None
    for auto, table, task in _AUTO:
        classes = compat.class_names(f"MODEL_FOR_{table}").get(kind)
        if name in ([classes] if isinstance(classes, str) else classes or ()):
            return auto, "translation" if kind in _TRANSLATES else task
    is_base = compat.class_names("MODEL").get(kind) == name or not hasattr(transformers, name)
    return ("AutoModel" if is_base else name), None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _processor(folder: Path, config: Mapping[str, Any]) -> str | None:
    kinds = {
        "tokenizer_config.json": "AutoTokenizer",
        "processor_config.json": "AutoProcessor",
        "preprocessor_config.json": "AutoImageProcessor"
        if "image_size" in config
        else "AutoProcessor",
    }
    return next((kind for file, kind in kinds.items() if (folder / file).is_file()), None)


def _recipe_of_run(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a folder that no Trainer is there for: what recipes and Trainers wrote beside the model."""
    recipe: dict[str, Any] = {}
    results, state = folder / "results.json", folder / "trainer_state.json"
    if results.is_file() and read_scores(folder):
        run = json.loads(results.read_text("utf-8"))
        recipe = {name: run.get(name) for name in ("steps", "epochs", "seed")}
        recipe["versions"] = said_versions(run.get("versions") or {}, config)
        recipe["command"] = f"`{run['command']}`" if run.get("command") else None
        return recipe
    if state.is_file():
        recipe["steps"] = json.loads(state.read_text("utf-8")).get("global_step")
    if config.get(KEY) is not None and "transformers_version" in config:
        saved = f"transformers {config['transformers_version']}, hf_nm {config[KEY]['hf_nm']}"
        recipe["saved with"] = saved
    return recipe

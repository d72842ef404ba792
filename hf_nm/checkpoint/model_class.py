"""Which class of transformers opens a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_nm import compat
from hf_nm.checkpoint.source import existing
from hf_nm.formats.packed_config import QUANTIZATION, is_packed_config

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

# Tried in this order where a config does not name its class: models with a head first.
_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModel",
)


def named_class(config: dict[str, Any]) -> Any:
    """The class of transformers that a config names; None if it names none."""
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


def opened_by(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The class of transformers that opens a model, and its task on the Hub."""
    import transformers

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


def build_on_meta(source: str | Path, *, dtype: str | None = None, **download: Any) -> Any:
    """A model of the right class on the meta device, from its config alone.

    Args:
        source: a ``config.json``, a folder with one, or a model's id on the Hub.
        dtype: of its parameters; the config's own if None.
        **download: for ``AutoConfig.from_pretrained``.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(existing(source), **download)
    except OSError as error:
        if not Path(source).exists():
            error.add_note(
                f"(there is no file or folder {str(source)!r} here, so the Hub was asked)"
            )
        raise
    if is_packed_config(vars(config)):  # its layers are plain ones
        delattr(config, QUANTIZATION)
    chosen = dtype or getattr(config, "dtype", None) or "float32"
    if isinstance(chosen, str):
        name = chosen
        chosen = getattr(torch, name, None)
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise ValueError(
                f"dtype must name a floating-point dtype of torch, but got {name!r}; write bfloat16, "
                "float16 or float32"
            )
    with torch.device("meta"):
        model: nn.Module = model_class(config)(config)
    return model.to(chosen)


def model_class(config: Any) -> Any:
    """transformers' class for a config: the one that the checkpoint names, else one with a head.

    Raises:
        ValueError: transformers has none.
    """
    import transformers

    if (named := named_class(vars(config))) is not None:
        return named
    if (found := compat.class_for(config, _AUTO_CLASSES)) is not None:
        return found
    raise ValueError(
        f"transformers {transformers.__version__} has no model class for {type(config).__name__} "
        f"(architectures: {getattr(config, 'architectures', None)}); install the version that the "
        "checkpoint was made with"
    )

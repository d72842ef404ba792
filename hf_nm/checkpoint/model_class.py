"""Which class of transformers opens a config: the one that it names, else one found by its type; and
the Auto class that does it for a reader of a model's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_nm import compat

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


def _architecture(config: Mapping[str, Any]) -> str | None:
    """The name of the class that saved a model, as its config has it; None if it has none."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    return name if isinstance(name, str) and name.isidentifier() else None


def named_class(config: Mapping[str, Any]) -> Any:
    """The class of transformers that a config names; None if it names none."""
    import transformers

    name = _architecture(config)
    found = None if name is None else getattr(transformers, name, None)
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


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


def needs_own_code(config: Mapping[str, Any]) -> bool:
    """Whether a model's class is in a file beside its weights (transformers' `auto_map`) and not in
    transformers, which then opens it with ``trust_remote_code=True``."""
    import transformers

    name, beside = _architecture(config), config.get("auto_map")
    return isinstance(beside, dict) and name is not None and not hasattr(transformers, name)


def opened_by(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The class of transformers that opens a model, and its task on the Hub."""
    import transformers

    kind, name = str(config.get("model_type")), _architecture(config)
    if needs_own_code(config):
        found = ((auto, task) for auto, _, task in _AUTO if auto in config["auto_map"])
        return next(found, ("AutoModel", None))
    if name is None:
        return "AutoModel", None
    for auto, table, task in _AUTO:
        classes = compat.class_names(f"MODEL_FOR_{table}").get(kind)
        if name in ([classes] if isinstance(classes, str) else classes or ()):
            return auto, "translation" if kind in _TRANSLATES else task
    is_base = compat.class_names("MODEL").get(kind) == name or not hasattr(transformers, name)
    return ("AutoModel" if is_base else name), None

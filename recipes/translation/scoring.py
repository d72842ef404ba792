"""How good the translations are: BLEU with its signature, and of the dictionary's word by word."""

from typing import Any

from corpus import embedded_corpus
from datasets import DatasetDict
from decoding import translate
from options import RecipeArguments
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nm.experiments.metrics import SacreBLEU
from hf_nm.experiments.results import write_translations
from hf_nm.experiments.run import Run


def score(
    recipe: RecipeArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: DatasetDict,
    run: Run,
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Translate validation and test set, all processes together; the test set's translations are kept
    in `translations.jsonl`.

    Args:
        recipe: how to search, and how much at once.
        model: on the device to use.
        tokenizer: the model's.
        splits: with columns `source` and `target`.
        run: whose log hears of each split.

    Returns:
        BLEU per split, 0 to 100, with its signature and the search's options; five translations of the
        test set.
    """
    search: dict[str, Any] = {"num_beams": recipe.num_beams}
    if recipe.num_beams > 1:
        search["length_penalty"] = recipe.length_penalty
    bleu, samples = {}, []
    for split in ("validation", "test"):
        sentences, references = list(splits[split]["source"]), list(splits[split]["target"])
        translations, cut = translate(
            model,
            tokenizer,
            sentences,
            max_tokens=recipe.max_tokens,
            max_length=recipe.max_length,
            **search,
        )
        scored = _bleu(translations, references)
        bleu[split] = scored["score"]
        run.log.info(
            f"{split}: BLEU {scored['score']:.2f}  {scored['signature']}  ({cut} sources cut)"
        )
        samples = [
            {"source": s, "translation": t, "reference": r}
            for s, t, r in zip(sentences[:5], translations, references, strict=False)
        ]
    if run.state.is_main_process:
        write_translations(run.out, sentences, translations, references)
    return {"metric": "BLEU", **bleu, "signature": scored["signature"], **search}, samples


def dictionary_baseline(splits: DatasetDict) -> float:
    """BLEU of the embedded test set where every word is replaced by its commonest translation."""
    guesses = [embedded_corpus().word_by_word(sentence) for sentence in splits["test"]["source"]]
    return _bleu(guesses, list(splits["test"]["target"]))["score"]


def signature() -> str:
    """How BLEU is computed here, before there is anything to score."""
    return _bleu(["a"], ["a"])["signature"]


def _bleu(predictions: list[str], references: list[str]) -> dict[str, Any]:
    return SacreBLEU(keep_in_memory=True).compute(predictions=predictions, references=references)

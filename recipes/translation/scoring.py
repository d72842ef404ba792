"""How good the translations are: BLEU with its signature, others beside it, and the dictionary's."""

from pathlib import Path
from typing import Any

import sacrebleu
from bleu import tokenized_bleu
from corpus import embedded_corpus
from datasets import DatasetDict
from decoding import translate
from options import RecipeArguments
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_nm.experiments.metrics import ChrF, SacreBLEU
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
        sacreBLEU's BLEU per split, 0 to 100, with its signature and the search's options; in `others`
        further scores of the test set, each with its signature; five translations of the test set.
    """
    search: dict[str, Any] = {"num_beams": recipe.num_beams}
    if recipe.num_beams > 1:
        search["length_penalty"] = recipe.length_penalty
    bleu, samples, others = {}, [], []
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
        scored = _bleu(translations, references, recipe.target_column)
        bleu[split] = scored["score"]
        run.log.info(
            f"{split}: BLEU {scored['score']:.2f}  {scored['signature']}  ({cut} sources cut)"
        )
        if split == "test":
            others = _others(recipe, sentences, translations, references, run)
        samples = [
            {"source": s, "translation": t, "reference": r}
            for s, t, r in zip(sentences[:5], translations, references, strict=False)
        ]
    if run.state.is_main_process:
        write_translations(run.out, sentences, translations, references)
    scores = {"metric": "BLEU", **bleu, "signature": scored["signature"], **search}
    return scores | {"sentences": len(sentences), "others": others}, samples


def _others(
    recipe: RecipeArguments,
    sources: list[str],
    translations: list[str],
    references: list[str],
    run: Run,
) -> list[dict[str, Any]]:
    """chrF, the tokenised BLEU of older papers, and BLEU on a part of the test set."""
    chrf = ChrF(keep_in_memory=True).compute(predictions=translations, references=references)
    found = [{"metric": "chrF", "test": chrf["score"], "signature": chrf["signature"]}]
    older = tokenized_bleu(translations, references, recipe.target_column)
    if older is None:
        run.log.info("no tokenised BLEU: sacremoses is not installed (pip install sacremoses)")
    else:
        metric = "tokenised BLEU, compounds split"
        found.append({"metric": metric, "test": older["score"], "signature": older["signature"]})
    if recipe.test_subset:
        pair = f"{recipe.source_column}-{recipe.target_column}"
        try:
            part = numbers_of_subset(recipe.test_subset, pair, sources, references)
        except (
            Exception,
            SystemExit,
        ) as error:  # of many kinds, where sacreBLEU cannot download it
            run.log.info(f"no score on {recipe.test_subset}: {error}")
        else:
            chosen, wanted = (
                [side[number] for number in part] for side in (translations, references)
            )
            scored = _bleu(chosen, wanted, recipe.target_column)
            split = f"test, the {len(part):,} of {len(sources):,} sentences in {recipe.test_subset}"
            row = {"metric": "BLEU", "split": split, "test": scored["score"]}
            found.append(row | {"signature": scored["signature"]})
    for row in found:
        run.log.info(
            f"{row.get('split', 'test')}: {row['metric']} {row['test']:.2f}  {row['signature']}"
        )
    return found


def numbers_of_subset(name: str, pair: str, sources: list[str], references: list[str]) -> list[int]:
    """Which sentences of a test set are those of a smaller one that sacreBLEU knows.

    sacreBLEU's `wmt14` are the 2,737 sentences (en-de) of the evaluation itself, its `wmt14/full`, and
    the Hub's, all 3,003 of newstest2014, which papers score.

    Args:
        name: sacreBLEU's, which downloads it once.
        pair: of languages, such as `en-de`.
        sources, references: the whole test set's.

    Returns:
        Their numbers, in the smaller set's order.

    Raises:
        ValueError: one of its sentences is not in the test set.
    """
    where: dict[tuple[str, ...], list[int]] = {}
    for number, texts in enumerate(zip(sources, references, strict=True)):
        where.setdefault(_spaced(*texts), []).append(number)
    files = [sacrebleu.get_source_file(name, pair), sacrebleu.get_reference_files(name, pair)[0]]
    sides = [Path(file).read_text("utf-8").split("\n")[:-1] for file in files]
    found = []
    for line, texts in enumerate(zip(*sides, strict=True), 1):
        if not where.get(_spaced(*texts)):
            raise ValueError(
                f"line {line} of sacreBLEU's {name} ({pair}) is not in the test set: {texts[0][:60]!r}; "
                "name a set whose sentences all are, or leave out --test_subset."
            )
        found.append(where[_spaced(*texts)].pop(0))
    return found


def _spaced(*texts: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts)


def dictionary_baseline(splits: DatasetDict) -> float:
    """BLEU of the embedded test set where every word is replaced by its commonest translation."""
    guesses = [embedded_corpus().word_by_word(sentence) for sentence in splits["test"]["source"]]
    return _bleu(guesses, list(splits["test"]["target"]), "de")["score"]


def signature(language: str) -> str:
    """How BLEU is computed for a language, before there is anything to score."""
    return _bleu(["a"], ["a"], language)["signature"]


def _bleu(predictions: list[str], references: list[str], language: str) -> dict[str, Any]:
    """By the tokenizer that sacreBLEU has for the language, 13a for most."""
    metric = SacreBLEU(keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references, trg_lang=language)

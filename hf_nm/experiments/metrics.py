"""How good an output is: BLEU and chrF of translations, accuracy, F1 and correlations of classes
and numbers, as `evaluate` metrics that need no network.

`evaluate.load("sacrebleu")` fetches a script from the Hub; these classes call sacrebleu, scikit-learn
or scipy directly and otherwise behave the same, in `evaluate.combine` too.
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import evaluate
import sacrebleu
from sklearn.metrics import accuracy_score, matthews_corrcoef

from hf_nm.experiments.agreement import f1, pearson, spearman

_CITATION = """@inproceedings{post-2018-call, title={A Call for Clarity in Reporting {BLEU} Scores},
author={Post, Matt}, booktitle={WMT}, year={2018}, url={https://aclanthology.org/W18-6319}}"""

_INPUTS = """
Args:
    predictions: list of translations, one string each, detokenised.
    references: for every prediction a string, or a list of strings where there are several
        references (the same number for every prediction).
"""


class _SacreMetric(evaluate.Metric):
    """Shared by both: features, and references turned round into sacrebleu's reference streams."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    @staticmethod
    def _streams(references: list[str] | list[list[str]]) -> list[list[str]]:
        """[predictions][references] -> [references][predictions]."""
        listed = [[item] if isinstance(item, str) else list(item) for item in references]
        counts = sorted({len(item) for item in listed})
        if len(counts) > 1:
            raise ValueError(
                f"every prediction needs the same number of references, got {counts[0]} to "
                f"{counts[-1]}; score the sentences with fewer references separately."
            )
        return [list(stream) for stream in zip(*listed, strict=True)]


class SacreBLEU(_SacreMetric):
    """Corpus BLEU from sacrebleu, on its scale of 0 to 100, with the signature that says how it was
    computed.

    `compute(predictions=..., references=...)` returns:
        score: BLEU, 0 to 100.
        counts, totals: matching and all n-grams of the predictions, for n = 1 to 4.
        precisions: `100 * counts / totals`, in per cent, smoothed where a count is 0.
        bp: brevity penalty, 0 to 1.
        sys_len, ref_len: tokens of predictions and references.
        signature: sacrebleu's, e.g. `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`.

    Keyword options of `compute` are sacrebleu's: `tokenize`, `lowercase`, `smooth_method`,
    `smooth_value`.

    Example:
        >>> metric = SacreBLEU()
        >>> metric.compute(predictions=["the cat sat there"], references=["the cat sat there"])["score"]
        100.00000000000004
    """

    def _compute(self, predictions: list[str], references: list, **options: Any) -> dict:
        metric = sacrebleu.BLEU(**options)
        result = metric.corpus_score(predictions, self._streams(references))
        return {
            "score": result.score,
            "counts": result.counts,
            "totals": result.totals,
            "precisions": result.precisions,
            "bp": result.bp,
            "sys_len": result.sys_len,
            "ref_len": result.ref_len,
            "signature": str(metric.get_signature()),
        }


class ChrF(_SacreMetric):
    """Corpus chrF from sacrebleu, on its scale of 0 to 100 (`word_order=2` gives chrF++), with its
    signature.

    `compute(predictions=..., references=...)` returns `score`, `char_order`, `word_order`, `beta`
    and `signature`.
    """

    def _compute(self, predictions: list[str], references: list, **options: Any) -> dict:
        metric = sacrebleu.CHRF(**options)
        result = metric.corpus_score(predictions, self._streams(references))
        return {
            "score": result.score,
            "char_order": result.char_order,
            "word_order": result.word_order,
            "beta": result.beta,
            "signature": str(metric.get_signature()),
        }


class _Agreement(evaluate.Metric):
    """Shared by those below: one number, under the name that evaluate's own script gives it."""

    key: ClassVar[str]
    value: ClassVar[str] = "int64"
    measure: ClassVar[Callable]  # of (predictions, references); all are symmetric

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.value)
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description=f"predictions and references: {self.value}, one for each example.",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A single label was found")  # which has its own score
            return {self.key: float(type(self).measure(predictions, references))}


class Accuracy(_Agreement):
    """Fraction of equal class numbers, scikit-learn's: `compute` returns `accuracy`, 0 to 1."""

    key = "accuracy"
    measure = staticmethod(accuracy_score)


class F1(_Agreement):
    """F1 of class 1 against class 0, scikit-learn's: `compute` returns `f1`, 0 to 1; 0.0 where there
    is no 1."""

    key = "f1"
    measure = staticmethod(f1)


class MatthewsCorrelation(_Agreement):
    """Matthews correlation of any number of classes, scikit-learn's: `compute` returns
    `matthews_correlation`, -1 to 1; 0.0 where one side is a single class."""

    key = "matthews_correlation"
    measure = staticmethod(matthews_corrcoef)


class Pearson(_Agreement):
    """Pearson's correlation of numbers, scipy's: `compute` returns `pearsonr`, -1 to 1; nan where one
    side is constant. Values are kept in float64, which evaluate's script rounds to float32."""

    key = "pearsonr"
    value = "float64"
    measure = staticmethod(pearson)


class Spearman(_Agreement):
    """Spearman's rank correlation of numbers, ties at their average rank, scipy's: `compute` returns
    `spearmanr`, -1 to 1; nan where one side is constant."""

    key = "spearmanr"
    value = "float64"
    measure = staticmethod(spearman)

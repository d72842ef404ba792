"""English reviews from a small grammar, each `negative` or `positive`: the classification recipe's
own data, so no download is needed.

Composition decides the label, no single word does:

- negation turns an opinion round: `was not good`, `never dull`, `hardly a triumph`, `nobody found
  the room cosy`; some words only look like it: `nothing but dull`, `nobody can deny that ...`;
- of two opposite clauses one decides: the one after `but` or `yet`, and the main clause beside
  `although`, `even though` or `despite`, in whichever order they stand.

**What is unseen.** Each pair of a noun and the opinion on it belongs by a checksum of its two words
to `train`, `validation` or `test`, and a sentence holds only pairs of its own split. So the splits
are disjoint, and a test sentence cannot be judged by remembering what was said of its nouns. Every
single word of validation and test occurs in training.

Standard library only, and of `random` only `random()`, whose sequence Python guarantees: the same
sentences everywhere.
"""

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from opinions import NOUNS, OPINIONS, Noun, Opinion

Item = TypeVar("Item")
SIZES = {"train": 6000, "validation": 400, "test": 400}
LABELS = ("negative", "positive")
_OPPOSITE = {"negative": "positive", "positive": "negative"}
_POLARITY = {opinion.word: opinion.label for row in OPINIONS.values() for opinion in row}

_DEGREES = {
    "gradable": ["very", "really", "rather", "surprisingly", "extremely", "nothing but"],
    "extreme": ["absolutely", "truly", "simply", "nothing short of"],
    "noun": ["a real", "a true", "nothing but a", "nothing short of a"],
}
_NOT_QUITE = {
    "gradable": ["not very", "not particularly", "never really"],
    "extreme": ["not exactly", "never quite"],
    "noun": ["not exactly", "never really"],
}
_NOT = ["not", "not", "not at all", "never", "hardly", "far from", "anything but", "in no way"]
_NOT_ATTRIBUTIVE = {
    "was": ["was not", "was never", "was hardly", "was by no means"],
    "had": ["did not have", "never had", "certainly did not have"],
}
_SEEMED = ["seemed to be", "proved to be", "turned out to be"]
_NOT_SEEMED = ["did not seem to be", "never proved to be", "hardly seemed to be"]
_FOUND = ["I found", "we found", "everyone found", "many people found", "most people called"]
_NOT_FOUND = ["I did not find", "we never found", "nobody found", "few people found"]
_NOT_FOUND += ["I would not call", "I could hardly call", "nobody would call"]
_OPENERS = ["Honestly,", "All in all,", "In my opinion,", "As far as I can tell,"]
_FRAMES = ["I must say that", "there is no doubt that", "nobody can deny that", "it is clear that"]
_TAILS = ["in the end", "this time", "on the whole", "after all"]


def split_of(noun: str, opinion: str) -> str:
    """Which split may use this pair of words: of ten pairs one validation, one test."""
    bucket = zlib.crc32(f"{noun} {opinion}".encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _with_article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


class Grammar:
    """Draws reviews from one split's pairs; `seed` fixes all of them."""

    def __init__(self, split: str, seed: int):
        self.random = random.Random(seed)
        self.pairs = {
            domain: [
                (noun, opinion)
                for noun in NOUNS[domain]
                for opinion in OPINIONS[domain]
                if split_of(noun.word, opinion.word) == split
            ]
            for domain in NOUNS
        }

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.random.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def clause(
        self, domain: str, label: str, before: list[Noun], negated: bool, form: str = ""
    ) -> str:
        """A clause with this label, or, as `form` says, only the phrase `despite the dull plot`.

        Its noun is added to `before`; a noun that is there is not used again, and is not followed
        by a whole.
        """
        wanted = _OPPOSITE[label] if negated else label
        noun, opinion = self.pick(
            [
                (noun, opinion)
                for noun, opinion in self.pairs[domain]
                if opinion.label == wanted
                and not (before and (noun.whole or noun in before))
                and not (form and opinion.kind == "noun")
            ]
        )
        before.append(noun)
        if form:
            return f"{form} the {opinion.word} {noun.word}"
        return self.denied(noun, opinion) if negated else self.affirmed(noun, opinion)

    def affirmed(self, noun: Noun, opinion: Opinion) -> str:
        degree = self.pick(_DEGREES[opinion.kind]) if self.chance(0.5) else ""
        judged = f"{degree} {opinion.word}".strip()
        if opinion.kind == "noun" and not degree:
            judged = _with_article(judged)
        form = self.random.random()
        if form < 0.25 and "nothing" not in degree:
            return f"{self.pick(_FOUND)} the {noun.word} {judged}"
        if form < 0.5 and "nothing" not in degree and opinion.kind != "noun":
            return self.attributive(noun, judged, "was", "had")
        verb = "were" if noun.plural else "was"
        return f"the {noun.word} {self.pick(_SEEMED) if self.chance(0.3) else verb} {judged}"

    def denied(self, noun: Noun, opinion: Opinion) -> str:
        judged = _with_article(opinion.word) if opinion.kind == "noun" else opinion.word
        form = self.random.random()
        if form < 0.25:
            return f"{self.pick(_NOT_FOUND)} the {noun.word} {judged}"
        if form < 0.45 and opinion.kind != "noun":
            verbs = [self.pick(_NOT_ATTRIBUTIVE[verb]) for verb in ("was", "had")]
            return self.attributive(noun, judged, *verbs)
        if form < 0.6:
            return f"the {noun.word} {self.pick(_NOT_SEEMED)} {judged}"
        verb = "were" if noun.plural else "was"
        denial = self.pick(_NOT_QUITE[opinion.kind] if self.chance(0.3) else _NOT)
        return f"the {noun.word} {verb} {denial} {judged}"

    def attributive(self, noun: Noun, judged: str, was: str, had: str) -> str:
        phrase = f"{judged} {noun.word}"
        if noun.whole:
            return f"this {was} {_with_article(phrase)}"
        return f"it {had} {phrase if noun.plural else _with_article(phrase)}"

    def contrast(self, domain: str, label: str) -> str:
        """Two clauses of opposite labels, of which one decides."""
        form = self.random.random()
        first_decides = form >= 0.35 and self.chance(0.5)
        labels = [label, _OPPOSITE[label]] if first_decides else [_OPPOSITE[label], label]
        phrase = "despite" if form >= 0.8 else ""
        before: list[Noun] = []
        first, second = (
            self.clause(
                domain,
                clause_label,
                before,
                negated=not (phrase and clause_label != label) and self.chance(0.2),
                form=phrase if clause_label != label else "",
            )
            for clause_label in labels
        )
        if form < 0.35:
            return f"{first}, {self.pick(['but', 'but', 'yet'])} {second}"
        if phrase:
            return f"{first} {second}" if first_decides else f"{first}, {second}"
        conjunction = self.pick(["although", "even though"])
        if first_decides:
            return f"{first}, {conjunction} {second}"
        return f"{conjunction} {first}, {second}"

    def review(self, label: str) -> str:
        """One sentence with this label."""
        domain, form = self.pick(list(NOUNS)), self.random.random()
        before: list[Noun] = []
        frame, mark = "", "."
        if form < 0.35:
            text = self.contrast(domain, label)
        elif form < 0.45:
            both = [self.clause(domain, label, before, self.chance(0.2)) for _ in range(2)]
            text = " and ".join(both)
        else:
            negated = self.chance(0.4)
            text = self.clause(domain, label, before, negated)
            text += f" {self.pick(_TAILS)}" if self.chance(0.25) else ""
            frame = self.pick(_FRAMES) if self.chance(0.3) else ""
            mark = "!" if not negated and self.chance(0.3) else "."
        opener = self.pick(_OPENERS) if not frame and self.chance(0.2) else ""
        text = f"{opener} {frame} {text}".strip()
        return text[0].upper() + text[1:].replace("  ", " ") + mark


@cache
def embedded_reviews() -> dict[str, list[tuple[str, str]]]:
    """{split: [(sentence, label)]}, as many of each label in every split, no sentence twice."""
    splits: dict[str, list[tuple[str, str]]] = {}
    for seed, (split, size) in enumerate(SIZES.items()):
        grammar = Grammar(split, seed)
        found: dict[str, str] = {}
        counts: Counter[str] = Counter()
        while len(found) < size:
            label = grammar.pick(LABELS)
            sentence = grammar.review(label)
            if sentence not in found and counts[label] < size // 2:
                found[sentence] = label
                counts[label] += 1
        splits[split] = list(found.items())
    return splits


def words(sentence: str) -> list[str]:
    """The words of a sentence, in lower case, without punctuation."""
    return sentence.rstrip(".!").replace(",", "").lower().split()


def count_words(sentence: str) -> str:
    """The baseline without composition: the label of most opinion words; of a tie, of the last."""
    found = [_POLARITY[word] for word in words(sentence) if word in _POLARITY]
    return max(reversed(found), key=found.count, default=LABELS[0])

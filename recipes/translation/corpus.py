"""English-German sentence pairs from a small grammar: the translation recipe's own data, so no
download is needed.

The German side has what makes German hard to translate word by word: three genders and four cases'
worth of
articles (nominative, accusative, dative are used), adjective endings after der-words, ein-words and
numbers, verb agreement, present, past, perfect, future and modal verbs, the verb second in main
clauses (with inversion) and last in subordinate ones, separable verbs, plurals, numbers written as
one word (`einundzwanzig`).

**What is unseen.** Each pair of an adjective and its noun, and each pair of a verb and its object
noun, belongs by a checksum of its two words to `train`, `validation` or `test`. A training sentence
holds `train` combinations only; every test sentence holds at least one `test` combination, every
validation sentence at least one `validation` combination, and neither holds one of the other. So
the splits are disjoint, and a test sentence cannot be put together from remembered pieces. Every
single word form of validation and test, on both sides, occurs in training.

Standard library only; the same seed gives the same sentences on every machine, whatever
PYTHONHASHSEED is.
"""

import random
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from lexicon import (
    ADJECTIVES,
    ADVERBS,
    CONJUNCTIONS,
    DATIVE,
    DITRANSITIVE,
    INTRANSITIVE,
    MODALS,
    PERSONS,
    PREPOSITIONS,
    PRONOUNS,
    REPORTING,
    THINGS,
    TRANSITIVE,
    Noun,
    Verb,
    number_words,
)

Item = TypeVar("Item")
Words = list[tuple[str, str]]  # aligned words (English, German), either may be empty
SIZES = {"train": 12000, "validation": 400, "test": 400}


# Endings by case (n, a, d: nominative, accusative, dative) and gender (m, f, n; p is plural).
def _endings(nominative: str, accusative: str, dative: str) -> dict[str, str]:
    """{case + gender: ending}; each argument lists the endings of m, f, n and p, - for none."""
    rows = {"n": nominative, "a": accusative, "d": dative}
    return {
        case + gender: ending.replace("-", "")
        for case, row in rows.items()
        for gender, ending in zip("mfnp", row.split(), strict=True)
    }


_THE = _endings("der die das die", "den die das die", "dem der dem den")
_DER = _endings("er e es e", "en e es e", "em er em en")
_EIN = _endings("- e - e", "en e - e", "em er em en")
_AFTER_DER = _endings("e e e en", "en e e en", "en en en en")
_AFTER_EIN = _endings("er e es en", "en e es en", "en en en en")
_AFTER_NUMBER = _DER
# English, English plural, German stem, kind; None: not used in the plural
_DETERMINERS = [
    ("the", "the", "d", "der"),
    ("the", "the", "d", "der"),
    ("a", None, "ein", "ein"),
    ("this", "these", "dies", "der"),
    ("every", None, "jed", "der"),
    ("my", "my", "mein", "ein"),
    ("no", "no", "kein", "ein"),
]  # fmt: skip


@dataclass
class Clause:
    """A clause in pieces, before either language has put them in order."""

    subject: Words
    finite: tuple[str, str]
    particle: str  # of a separable verb whose finite form stands alone
    rest: Words  # infinitive or participle
    middle: list[Words]  # objects and prepositional phrases
    adverb: Words
    question: tuple[str, str] | None  # English auxiliary and main verb, where English needs "do"
    combinations: list[tuple[str, str]] = field(default_factory=list)

    def english(self, inverted: bool = False, front: bool = False) -> list[str]:
        adverb = [en for en, _ in self.adverb]
        subject = [en for en, _ in self.subject]
        tail = [en for en, _ in self.rest] + [en for words in self.middle for en, _ in words]
        if inverted:
            auxiliary, verb = self.question or (self.finite[0], "")
            return [auxiliary, *subject, verb, *tail, *adverb]
        clause = [*subject, self.finite[0], *tail]
        return [*adverb, *clause] if front else [*clause, *adverb]

    def german(self, order: str, front: bool = False) -> list[str]:
        """Order says where the verb goes: `second`, `first` (then the subject) or `last`."""
        subject = [de for _, de in self.subject]
        adverb = [de for _, de in self.adverb]
        middle = [de for words in self.middle for _, de in words]
        rest = [de for _, de in self.rest]
        if order == "last":
            return [*subject, *adverb, *middle, *rest, self.particle + self.finite[1]]
        end = [*middle, *rest, self.particle]
        if order == "first":
            return [self.finite[1], *subject, *adverb, *end]
        if front:
            return [*adverb, self.finite[1], *subject, *end]
        return [*subject, self.finite[1], *adverb, *end]

    def words(self) -> Words:
        """Everything aligned, for the dictionary."""
        verb = [self.finite]
        if self.question:
            verb = [(self.question[0], ""), (self.question[1], self.finite[1])]
        middle = [pair for words in self.middle for pair in words]
        return [*self.subject, *verb, *self.rest, *middle, *self.adverb]


class Grammar:
    """Draws sentences; `seed` fixes all of them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.random.randrange(len(items))]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def noun_phrase(
        self, nouns: list[Noun], case: str, clause: list[tuple[str, str]]
    ) -> tuple[Words, str, str]:
        """Aligned words, person (`3s` or `3p`) and the noun; adds (adjective, noun) to `clause`."""
        noun = self.pick(nouns)
        plural = self.chance(0.3)
        form = case + ("p" if plural else noun.gender)
        adjective = self.pick(ADJECTIVES) if self.chance(0.5) else None
        if plural and self.chance(0.4):
            words, endings = [number_words(self.random.randrange(2, 100))], _AFTER_NUMBER
        else:
            options = [row for row in _DETERMINERS if row[1] or not plural]
            singular_en, plural_en, stem, kind = self.pick(options)
            english = (plural_en if plural else singular_en) or ""  # the options have one
            if english == "a":
                follower = adjective[0] if adjective else noun.english
                english = "an" if follower[0] in "aeiou" else "a"
            german = _THE[form] if stem == "d" else stem + (_DER if kind == "der" else _EIN)[form]
            words, endings = [(english, german)], _AFTER_DER if kind == "der" else _AFTER_EIN
        if adjective:
            words.append((adjective[0], adjective[1] + endings[form]))
            clause.append((adjective[0], noun.english))
        words.append(
            (noun.english_plural if plural else noun.english, noun.german_form(case, plural))
        )
        return words, "3p" if plural else "3s", noun.english

    def clause(self, question: bool = False, adverb: bool = True) -> Clause:
        combinations: list[tuple[str, str]] = []
        if self.chance(0.25):
            english, german, person = self.pick(PRONOUNS)
            subject: Words = [(english, german)]
        else:
            subject, person, _ = self.noun_phrase(PERSONS, "n", combinations)
        kind = self.random.random()
        middle: list[Words] = []
        if kind < 0.6:
            verb = self.pick(TRANSITIVE)
            words, _, noun = self.noun_phrase(THINGS, "a", combinations)
        elif kind < 0.72:
            verb = self.pick(DATIVE)
            words, _, noun = self.noun_phrase(PERSONS, "d", combinations)
        elif kind < 0.85:
            verb = self.pick(DITRANSITIVE)
            middle.append(self.noun_phrase(PERSONS, "d", combinations)[0])
            words, _, noun = self.noun_phrase(THINGS, "a", combinations)
        else:
            verb = self.pick(INTRANSITIVE)
            words, noun = [], ""
        if words:
            middle.append(words)
            combinations.append((verb.english[0], noun))
        if kind >= 0.85 or self.chance(0.15):
            english, german, case = self.pick(PREPOSITIONS)
            phrase, _, _ = self.noun_phrase(PERSONS, case, combinations)
            middle.append([(english, german), *phrase])
        finite, particle, rest, do = self.verb_group(verb, person)
        time = [self.pick(ADVERBS)] if adverb and self.chance(0.35) else []
        return Clause(
            subject, finite, particle, rest, middle, time, do if question else None, combinations
        )

    def verb_group(
        self, verb: Verb, person: str
    ) -> tuple[tuple[str, str], str, Words, tuple[str, str] | None]:
        """Finite verb, loose particle, infinitive or participle, question form with `do`."""
        kind = self.random.random()
        base, third, past, participle = verb.english
        singular = person == "3s"
        if kind < 0.45:
            finite = (third if singular else base, verb.present(person))
            return finite, verb.particle, [], ("does" if singular else "do", base)
        if kind < 0.65:
            return (past, verb.past_form(person)), verb.particle, [], ("did", base)
        if kind < 0.8:
            has = {"1s": ("have", "habe"), "3s": ("has", "hat")}.get(person, ("have", "haben"))
            return has, "", [(participle, verb.participle())], None
        english, first, third_german, plural = self.pick(MODALS)
        german = {"1s": first, "3s": third_german}.get(person, plural)
        return (english, german), "", [(base, verb.particle + verb.infinitive)], None

    def sentence(self) -> tuple[str, str, list[tuple[str, str]], Words]:
        """English, German, the combinations used, and the aligned words."""
        kind = self.random.random()
        extra: Words = []
        if kind < 0.45:
            main = self.clause()
            front = bool(main.adverb) and self.chance(0.5)
            clauses, mark = [main], "."
            english, german = main.english(front=front), main.german("second", front)
        elif kind < 0.58:
            main = self.clause(question=True)
            clauses, mark = [main], "?"
            english, german = main.english(inverted=True), main.german("first")
        else:
            main, under = self.clause(adverb=False), self.clause()
            clauses, mark = [main, under], "."
            if kind < 0.75:
                verb, conjunction = (
                    self.pick(REPORTING),
                    self.pick([("that", "dass"), ("that", "dass"), ("whether", "ob")]),
                )
                english_subject, german_subject, person = self.pick(PRONOUNS)
                finite = (verb.english[1 if person == "3s" else 0], verb.present(person))
                if conjunction[0] == "whether":
                    finite = (
                        "asks" if person == "3s" else "ask",
                        {"1s": "frage", "3s": "fragt"}.get(person, "fragen"),
                    )
                clauses, extra = [under], [(english_subject, german_subject), finite, conjunction]
                english = [english_subject, finite[0], conjunction[0], *under.english()]
                german = [german_subject, finite[1], ",", conjunction[1], *under.german("last")]
            elif kind < 0.9:
                conjunction = self.pick(CONJUNCTIONS)
                extra = [conjunction]
                english = [*main.english(), conjunction[0], *under.english()]
                german = [*main.german("second"), ",", conjunction[1], *under.german("last")]
            else:
                conjunction = self.pick([pair for pair in CONJUNCTIONS if pair[0] != "because"])
                extra = [conjunction]
                english = [conjunction[0], *under.english(), ",", *main.english()]
                german = [conjunction[1], *under.german("last"), ",", *main.german("first")]
        combinations = [pair for clause in clauses for pair in clause.combinations]
        aligned = extra + [pair for clause in clauses for pair in clause.words()]
        return _text(english, mark), _text(german, mark), combinations, aligned


def _text(words: list[str], mark: str) -> str:
    text = " ".join(word for word in words if word).replace(" ,", ",")
    return text[0].upper() + text[1:] + mark


def split_of(combination: tuple[str, str]) -> str:
    """Which split may use this pair of English words: of ten pairs one validation, one test."""
    bucket = zlib.crc32(" ".join(combination).encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def forms(sentence: str) -> list[str]:
    """The word forms of a sentence, without punctuation, as they are written."""
    return sentence.rstrip(".?").replace(",", "").split()


@dataclass(frozen=True)
class Corpus:
    """`splits`: {split: [(English, German)]}; `dictionary`: {English form: German form}."""

    splits: dict[str, list[tuple[str, str]]]
    dictionary: dict[str, str]

    def word_by_word(self, sentence: str) -> str:
        """The baseline: every word replaced by its commonest translation, order kept."""
        words = [self.dictionary.get(word.lower(), word) for word in forms(sentence)]
        return _text(words, sentence[-1])


@cache
def embedded_corpus(seed: int = 0) -> Corpus:
    """Draw sentences until every split is full; see the module's docstring for what goes where."""
    grammar = Grammar(seed)
    splits: dict[str, list[tuple[str, str]]] = {split: [] for split in SIZES}
    seen: set[str] = set()
    known: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    waiting = []
    while len(splits["train"]) < SIZES["train"]:
        english, german, combinations, aligned = grammar.sentence()
        wanted = {split_of(pair) for pair in combinations} - {"train"}
        if english in seen or len(wanted) > 1:
            continue
        seen.add(english)
        if wanted:
            waiting.append((wanted.pop(), english, german))
            continue
        splits["train"].append((english, german))
        known.update(forms(english), forms(german))
        for source, target in aligned:
            if source:
                counts.setdefault(source.lower(), Counter())[target] += 1
    for split, english, german in waiting:
        if len(splits[split]) < SIZES[split] and known.issuperset(forms(english) + forms(german)):
            splits[split].append((english, german))
    dictionary = {
        source: max(found, key=lambda form: (found[form], form)) for source, found in counts.items()
    }
    return Corpus(splits, dictionary)

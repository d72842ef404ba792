"""The embedded reviews: their sentences, labels and splits, and the baseline that counts words."""

import hashlib
import os
import re
from collections import Counter

import pytest
from launching import run_python
from recipe_loading import CLASSIFICATION, importing

with importing("classification"):
    from opinions import NOUNS, OPINIONS
    from reviews import count_words, embedded_reviews, split_of, words

NOUN_WORDS = {noun.word for row in NOUNS.values() for noun in row}
LABELS = {opinion.word: opinion.label for row in OPINIONS.values() for opinion in row}
OPPOSITE = {"negative": "positive", "positive": "negative"}
SHA256 = "ded14c147325b973890cb78908fc1fcdc4d6d78048c9bc43ddf6d913e48d2b77"


@pytest.fixture(scope="module")
def reviews():
    return embedded_reviews()


def test_reviews_same_everywhere(reviews):
    """Red if a set's order, the hash seed or a changed word gets into the sentences unnoticed."""
    assert hashlib.sha256(repr(reviews).encode()).hexdigest() == SHA256
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); import reviews;"
        "print(hashlib.sha256(repr(reviews.embedded_reviews()).encode()).hexdigest())"
    )
    found = run_python("-c", code, CLASSIFICATION, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert found.stdout.strip() == SHA256


def test_counts_and_balance(reviews):
    """Red if a split is short, leans to one label, begins with one, or shares a sentence."""
    sizes = {"train": 6000, "validation": 400, "test": 400}
    assert {split: len(rows) for split, rows in reviews.items()} == sizes
    for split, rows in reviews.items():
        half = sizes[split] // 2
        assert Counter(label for _, label in rows) == {"negative": half, "positive": half}
        first = Counter(label for _, label in rows[: half // 2])
        assert min(first.values()) > half // 8
    sentences = [sentence for rows in reviews.values() for sentence, _ in rows]
    assert len(set(sentences)) == len(sentences)


LITERAL = {
    "The sequel was entertaining.": "positive",
    "This was an awkward watch.": "negative",
    "It had a really pleasant bar.": "positive",
    "It had worthless costumes.": "negative",
    # negation
    "The menu was not fantastic.": "negative",
    "The instructions were never appalling.": "positive",
    "The costumes were not very good.": "negative",
    "Nobody found the hostel marvellous.": "negative",
    "This was hardly a dreadful laptop.": "positive",
    "It never had an unreliable charger.": "positive",
    "I must say that the hotel did not seem to be a treat.": "negative",
    "Nobody can deny that the hostel was hardly a success.": "negative",
    # what only looks like it
    "Nobody can deny that we found the lobby cosy in the end!": "positive",
    "I must say that the battery was nothing but a delight this time.": "positive",
    "The watch seemed to be nothing short of a treat!": "positive",
    # contrast
    "The controls were a success, but the design was absolutely hopeless.": "negative",
    "The waiters were not outstanding, yet the beds seemed to be superb.": "positive",
    "Although the pool was dreadful, I found the bathroom a delight.": "positive",
    "The musical was a real failure, although the jokes were a true triumph.": "negative",
    "The case proved to be a true triumph, although it did not have clever buttons.": "positive",
    "Even though it certainly did not have bad songs, few people found the cast splendid.": "negative",
    "The pool was likeable, even though the bathroom was simply awful.": "positive",
    "Despite the cosy waiters, it had atrocious towels.": "negative",
    "The sequel was fantastic despite the awful cast.": "positive",
    # agreement
    "The garden was nothing short of a triumph and the meals were a success.": "positive",
}


def test_literal(reviews):
    """Red if a construction is lost, its label turns round, or an article or verb form is wrong."""
    labels = dict(row for rows in reviews.values() for row in rows)
    assert {sentence: labels.get(sentence) for sentence in LITERAL} == LITERAL


def _clause_label(clause: str) -> str:
    """A slow twin: the label of the one opinion word, turned round by a negation."""
    pretended = "nothing but|nothing short of|nobody can deny that|there is no doubt that"
    clause = re.sub(pretended, "", clause.lower())
    (opinion,) = [word for word in words(clause) if word in LABELS]
    negation = (
        r"\b(not|never|hardly|nobody|few people|far from|anything but|in no way|by no means)\b"
    )
    negations = len(re.findall(negation, clause))
    assert negations <= 1, clause
    return OPPOSITE[LABELS[opinion]] if negations else LABELS[opinion]


OPENER = r"^(Honestly|All in all|In my opinion|As far as I can tell), "
TWO_CLAUSES = [
    r"(?P<other>.*), (but|yet) (?P<main>.*)",
    r"([Aa]lthough|[Ee]ven though|[Dd]espite) (?P<other>.*), (?P<main>.*)",
    r"(?P<main>.*?),? (although|even though|despite) (?P<other>.*)",
    r"(?P<main>.*) and (?P<other>.*)",
]


def _label(sentence: str) -> tuple[str, str | None]:
    """The deciding clause's label, and that of the other one, if there is one."""
    text = re.sub(OPENER, "", sentence)
    for form in TWO_CLAUSES:
        if match := re.fullmatch(form, text):
            return _clause_label(match["main"]), _clause_label(match["other"])
    return _clause_label(text), None


def test_labels_follow_from_the_words(reviews):
    """Red if any label is not what its sentence says, or a contrast has two clauses alike."""
    for rows in reviews.values():
        contrasts = 0
        for sentence, label in rows:
            found, other = _label(sentence)
            assert found == label, sentence
            if other:
                assert (other == label) == (" and " in sentence), sentence
                contrasts += other != label
        assert contrasts > len(rows) / 4


def test_grammatical(reviews):
    """Red if an article does not fit the next word, or a verb its noun."""
    plural = {noun.word for row in NOUNS.values() for noun in row if noun.plural}
    for rows in reviews.values():
        for sentence, _ in rows:
            assert re.match(r"[A-Z][a-zA-Z ,]+[.!]$", sentence), sentence
            assert "  " not in sentence
            for article, letter in re.findall(r"\b(an?) (\w)", sentence, re.IGNORECASE):
                assert (article.lower() == "an") == (letter in "aeiou"), sentence
            for noun, verb in re.findall(r"\bthe (\w+) (was|were)\b", sentence, re.IGNORECASE):
                assert (verb == "were") == (noun in plural), sentence


def _pairs(sentence: str) -> set[tuple[str, str]]:
    """(noun, opinion), read from the words: every clause has one of each."""
    spoken = words(sentence)
    nouns = [word for word in spoken if word in NOUN_WORDS]
    opinions = [word for word in spoken if word in LABELS]
    return set(zip(nouns, opinions, strict=True))


def test_held_out_pairs_are_unseen(reviews):
    """Red if a test sentence says of a noun what a training sentence says of it."""
    pairs = {
        split: {pair for sentence, _ in rows for pair in _pairs(sentence)}
        for split, rows in reviews.items()
    }
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["validation"]
    assert not pairs["test"] & pairs["validation"]
    for split, found in pairs.items():
        assert {split_of(*pair) for pair in found} == {split}
        assert len(found) > 150


def test_single_words_are_seen(reviews):
    """Red if a held-out sentence has a word that training has not, or a word is never used."""
    known = {word for sentence, _ in reviews["train"] for word in words(sentence)}
    for split in ("validation", "test"):
        assert {word for sentence, _ in reviews[split] for word in words(sentence)} <= known
    assert NOUN_WORDS | set(LABELS) <= known
    assert len(NOUN_WORDS) >= 60
    assert min(Counter(LABELS.values()).values()) >= 30


def test_words_have_one_part():
    """Red if a word is both noun and opinion or has both labels, which leaves pairs ambiguous."""
    assert not NOUN_WORDS & set(LABELS)
    assert sum(map(len, NOUNS.values())) == len(NOUN_WORDS)
    assert len({(o.word, o.label) for row in OPINIONS.values() for o in row}) == len(LABELS)


def test_counting_words_is_not_enough(reviews):
    """Red if counting opinion words solves the task, or the baseline forgets ties or commas."""
    assert count_words("The plot was dull.") == "negative"
    assert count_words("The plot was not dull.") == "negative"
    assert count_words("The plot was dull, but the cast was brilliant!") == "positive"
    assert count_words("The cast was brilliant, although the plot was dull.") == "negative"
    assert count_words("Good, good and bad.") == "positive"
    assert count_words("There was a plot.") == "negative"
    for split in ("validation", "test"):
        rows = reviews[split]
        hits = sum(count_words(sentence) == label for sentence, label in rows)
        assert 0.5 < hits / len(rows) < 0.65

"""What the embedded reviews speak of and what they say of it: nouns and opinion words by domain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """`whole`: what a review is about, where other nouns are parts of it."""

    word: str
    plural: bool
    whole: bool


@dataclass(frozen=True)
class Opinion:
    """`kind`: `gradable` (very good), `extreme` (absolutely superb) or `noun` (a real triumph)."""

    word: str
    kind: str
    label: str


# Per domain: wholes, parts, parts in the plural.
_NOUN_WORDS = {
    "film": (
        "film movie drama comedy thriller sequel documentary musical",
        "plot cast script ending soundtrack opening story finale hero villain",
        "actors costumes songs jokes",
    ),
    "product": (
        "phone laptop camera tablet radio headset printer watch",
        "battery display case charger cable manual design menu speaker",
        "buttons settings instructions controls",
    ),
    "place": (
        "hotel hostel inn resort guesthouse lodge",
        "room breakfast bathroom lobby garden kitchen terrace bar pool view",
        "beds waiters meals towels",
    ),
}
NOUNS = {
    domain: [
        *(Noun(word, plural=False, whole=True) for word in wholes.split()),
        *(Noun(word, plural=False, whole=False) for word in parts.split()),
        *(Noun(word, plural=True, whole=False) for word in plurals.split()),
    ]
    for domain, (wholes, parts, plurals) in _NOUN_WORDS.items()
}
# Per label and kind; `any` fits every noun, the others a domain's.
_OPINION_WORDS = {
    ("positive", "any", "gradable"): "good impressive satisfying likeable remarkable",
    ("positive", "any", "extreme"): "excellent superb wonderful fantastic brilliant outstanding "
    "marvellous perfect splendid",
    ("positive", "any", "noun"): "triumph success delight treat joy",
    ("positive", "film", "gradable"): "gripping clever engaging original charming entertaining",
    ("positive", "product", "gradable"): "practical handy reliable elegant clever polished",
    ("positive", "place", "gradable"): "charming pleasant inviting cosy stylish cheerful",
    ("negative", "any", "gradable"): "bad poor disappointing weak mediocre",
    ("negative", "any", "extreme"): "terrible awful dreadful horrible appalling atrocious hopeless "
    "abysmal worthless",
    ("negative", "any", "noun"): "failure mess letdown disappointment disgrace",
    ("negative", "film", "gradable"): "dull boring predictable tedious silly clumsy",
    ("negative", "product", "gradable"): "unreliable flimsy clumsy impractical crude awkward",
    ("negative", "place", "gradable"): "gloomy dreary shabby drab depressing unpleasant",
}

OPINIONS = {
    domain: [
        Opinion(word, kind, label)
        for (label, where, kind), words in _OPINION_WORDS.items()
        if where in ("any", domain)
        for word in words.split()
    ]
    for domain in NOUNS
}

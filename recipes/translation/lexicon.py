"""The words of the embedded corpus, and how German inflects them; corpus.py puts them together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """`gender` is m, f or n; `weak` nouns: der Junge, den Jungen, dem Jungen."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    gender: str
    weak: bool = False

    def german_form(self, case: str, plural: bool) -> str:
        """Case n, a or d. Dative plurals add -n: den Kindern."""
        if plural:
            return self.german_plural + (
                "n" if case == "d" and self.german_plural[-1] not in "ns" else ""
            )
        return self.german_plural if self.weak and case != "n" else self.german


@dataclass(frozen=True)
class Verb:
    """English: base, third person, past, participle. German: forms without the particle."""

    english: tuple[str, str, str, str]
    infinitive: str
    third: str
    past: str
    perfect: str  # participle, without the particle
    particle: str = ""

    def present(self, person: str) -> str:
        if person == "1s":
            # lächeln and the like are left out, so the first person is the infinitive without its
            # n.
            return self.infinitive[:-1]
        return self.third if person == "3s" else self.infinitive

    def past_form(self, person: str) -> str:
        if person in ("1s", "3s"):
            return self.past
        return self.past + ("n" if self.past.endswith("e") else "en")

    def participle(self) -> str:
        return self.particle + self.perfect


def _nouns(text: str) -> list[Noun]:
    nouns = []
    for row in text.strip().splitlines():
        english, english_plural, german, german_plural, gender = row.split()
        nouns.append(
            Noun(english, english_plural, german, german_plural, gender[0], gender.endswith("w"))
        )
    return nouns


def _verbs(text: str) -> list[Verb]:
    verbs = []
    for row in text.strip().splitlines():
        base, third_person, simple_past, participle, infinitive, third, past, perfect = row.split()
        english = base, third_person, simple_past, participle
        particle, _, infinitive = infinitive.rpartition("|")
        verbs.append(Verb(english, infinitive, third, past, perfect, particle))
    return verbs


PERSONS = _nouns("""
man men Mann Männer m
woman women Frau Frauen f
child children Kind Kinder n
boy boys Junge Jungen mw
girl girls Mädchen Mädchen n
teacher teachers Lehrer Lehrer m
student students Student Studenten mw
doctor doctors Arzt Ärzte m
friend friends Freund Freunde m
aunt aunts Tante Tanten f
sister sisters Schwester Schwestern f
brother brothers Bruder Brüder m
neighbour neighbours Nachbar Nachbarn mw
guest guests Gast Gäste m
queen queens Königin Königinnen f
farmer farmers Bauer Bauern mw
dog dogs Hund Hunde m
cat cats Katze Katzen f
horse horses Pferd Pferde n
bird birds Vogel Vögel m
cow cows Kuh Kühe f
team teams Team Teams n
""")

THINGS = _nouns("""
apple apples Apfel Äpfel m
book books Buch Bücher n
letter letters Brief Briefe m
house houses Haus Häuser n
car cars Auto Autos n
door doors Tür Türen f
window windows Fenster Fenster n
table tables Tisch Tische m
chair chairs Stuhl Stühle m
lamp lamps Lampe Lampen f
picture pictures Bild Bilder n
flower flowers Blume Blumen f
tree trees Baum Bäume m
key keys Schlüssel Schlüssel m
coat coats Mantel Mäntel m
hat hats Hut Hüte m
shirt shirts Hemd Hemden n
bottle bottles Flasche Flaschen f
glass glasses Glas Gläser n
knife knives Messer Messer n
clock clocks Uhr Uhren f
ship ships Schiff Schiffe n
bag bags Tasche Taschen f
egg eggs Ei Eier n
newspaper newspapers Zeitung Zeitungen f
island islands Insel Inseln f
bridge bridges Brücke Brücken f
song songs Lied Lieder n
ball balls Ball Bälle m
stone stones Stein Steine m
""")

ADJECTIVES = [
    tuple(row.split())
    for row in """
old alt
young jung
big groß
small klein
new neu
red rot
green grün
blue blau
black schwarz
white weiß
beautiful schön
ugly hässlich
strong stark
poor arm
rich reich
quiet still
clever klug
strange seltsam
heavy schwer
cheap billig
important wichtig
round rund
""".strip().splitlines()
]

# English forms, then German infinitive (particle before |), third person, past, participle without
# the particle
TRANSITIVE = _verbs("""
see sees saw seen sehen sieht sah gesehen
buy buys bought bought kaufen kauft kaufte gekauft
sell sells sold sold verkaufen verkauft verkaufte verkauft
find finds found found finden findet fand gefunden
lose loses lost lost verlieren verliert verlor verloren
need needs needed needed brauchen braucht brauchte gebraucht
paint paints painted painted malen malt malte gemalt
carry carries carried carried tragen trägt trug getragen
seek seeks sought sought suchen sucht suchte gesucht
forget forgets forgot forgotten vergessen vergisst vergaß vergessen
describe describes described described beschreiben beschreibt beschrieb beschrieben
break breaks broke broken zerbrechen zerbricht zerbrach zerbrochen
love loves loved loved lieben liebt liebte geliebt
take takes took taken nehmen nimmt nahm genommen
hide hides hid hidden verstecken versteckt versteckte versteckt
draw draws drew drawn zeichnen zeichnet zeichnete gezeichnet
hold holds held held halten hält hielt gehalten
touch touches touched touched berühren berührt berührte berührt
fetch fetches fetched fetched ab|holen holt holte geholt
collect collects collected collected ein|sammeln sammelt sammelte gesammelt
inspect inspects inspected inspected an|sehen sieht sah gesehen
clear clears cleared cleared auf|räumen räumt räumte geräumt
return returns returned returned zurück|bringen bringt brachte gebracht
""")
DATIVE = _verbs("""
help helps helped helped helfen hilft half geholfen
thank thanks thanked thanked danken dankt dankte gedankt
answer answers answered answered antworten antwortet antwortete geantwortet
believe believes believed believed glauben glaubt glaubte geglaubt
congratulate congratulates congratulated congratulated gratulieren gratuliert gratulierte gratuliert
watch watches watched watched zu|sehen sieht sah gesehen
""")
DITRANSITIVE = _verbs("""
give gives gave given geben gibt gab gegeben
show shows showed shown zeigen zeigt zeigte gezeigt
bring brings brought brought bringen bringt brachte gebracht
send sends sent sent schicken schickt schickte geschickt
lend lends lent lent leihen leiht lieh geliehen
""")
INTRANSITIVE = _verbs("""
sleep sleeps slept slept schlafen schläft schlief geschlafen
work works worked worked arbeiten arbeitet arbeitete gearbeitet
laugh laughs laughed laughed lachen lacht lachte gelacht
sing sings sang sung singen singt sang gesungen
dance dances danced danced tanzen tanzt tanzte getanzt
wait waits waited waited warten wartet wartete gewartet
play plays played played spielen spielt spielte gespielt
cry cries cried cried weinen weint weinte geweint
""")
REPORTING = _verbs("""
say says said said sagen sagt sagte gesagt
know knows knew known wissen weiß wusste gewusst
think thinks thought thought denken denkt dachte gedacht
hope hopes hoped hoped hoffen hofft hoffte gehofft
""")

# English, German, person and number (s or p)
PRONOUNS = [
    ("I", "ich", "1s"),
    ("he", "er", "3s"),
    ("she", "sie", "3s"),
    ("we", "wir", "1p"),
    ("they", "sie", "3p"),
]
# English, German first person, third person, plural; the infinitive follows
MODALS = [
    ("can", "kann", "kann", "können"),
    ("must", "muss", "muss", "müssen"),
    ("should", "sollte", "sollte", "sollten"),
    ("will", "werde", "wird", "werden"),
]
PREPOSITIONS = [
    ("with", "mit", "d"),
    ("for", "für", "a"),
    ("without", "ohne", "a"),
    ("behind", "hinter", "d"),
]
ADVERBS = [
    ("today", "heute"),
    ("often", "oft"),
    ("now", "jetzt"),
    ("here", "hier"),
    ("sometimes", "manchmal"),
    ("again", "wieder"),
]
CONJUNCTIONS = [("because", "weil"), ("although", "obwohl"), ("when", "wenn"), ("before", "bevor")]

_UNITS, _TEENS, _TENS, _EINER, _ZEHNER, _ZIG = (
    row.split()
    for row in """
one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety
ein zwei drei vier fünf sechs sieben acht neun
zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn
zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig
""".strip().splitlines()
)


def number_words(number: int) -> tuple[str, str]:
    """2 to 99 in words: (twenty-one, einundzwanzig)."""
    if not 2 <= number <= 99:
        raise ValueError(f"number_words knows 2 to 99, got {number}.")
    tens, units = divmod(number, 10)
    if tens == 0:
        return _UNITS[units - 1], _EINER[units - 1]
    if tens == 1:
        return _TEENS[units], _ZEHNER[units]
    english, german = _TENS[tens - 2], _ZIG[tens - 2]
    if units:
        english, german = f"{english}-{_UNITS[units - 1]}", f"{_EINER[units - 1]}und{german}"
    return english, german

"""A small grammar that generates English-German sentence pairs with known word alignments.

The word order differs: in German, infinitives and the particle of a separable verb stand at the end
of a main clause, and all verbs at the end of a subordinate clause. The depth of a sentence is the
number of nested clauses between its subject and its verb.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple, final


class Example(NamedTuple):
    """A sentence pair.

    alignment: pairs (English, German) of indices of words and punctuation marks that are
    translations of each other; a word may be in none or in several.
    """

    english: str
    german: str
    alignment: tuple[tuple[int, int], ...]
    depth: int


def examples(count: int, depths: Sequence[int], seed: int) -> Iterator[Example]:
    """Yield `count` random pairs with depths drawn from `depths`; a function of the seed."""
    generator = Random(seed)
    for _ in range(count):
        writer = _Writer(generator)
        yield writer.sentence(writer.one_of(depths))


# A word and its alignment number: a word and its translations have the same number; 0 if there is
# no translation.
Word = tuple[str, int]
Words = list[Word]


class Noun(NamedTuple):
    english: str
    englishes: str
    german: str
    germans: str
    gender: str


class Verb(NamedTuple):
    """particle: of a separable German verb. perfect: the German auxiliary of the perfect."""

    english: str
    he: str
    done: str
    german: str
    er: str
    getan: str
    particle: str = ""
    perfect: str = "haben"


def _rows(kind: Any, table: str) -> tuple[Any, ...]:
    return tuple(kind(*(cell.strip() for cell in line.split("|"))) for line in table.split("\n"))


BEINGS: tuple[Noun, ...] = _rows(
    Noun,
    """dog | dogs | Hund | Hunde | m
wolf | wolves | Wolf | Wölfe | m
bird | birds | Vogel | Vögel | m
man | men | Mann | Männer | m
doctor | doctors | Arzt | Ärzte | m
teacher | teachers | Lehrer | Lehrer | m
friend | friends | Freund | Freunde | m
cat | cats | Katze | Katzen | f
mouse | mice | Maus | Mäuse | f
cow | cows | Kuh | Kühe | f
woman | women | Frau | Frauen | f
aunt | aunts | Tante | Tanten | f
child | children | Kind | Kinder | n
girl | girls | Mädchen | Mädchen | n
horse | horses | Pferd | Pferde | n
pig | pigs | Schwein | Schweine | n""",
)
PLACES: tuple[Noun, ...] = _rows(
    Noun,
    """garden | gardens | Garten | Gärten | m
forest | forests | Wald | Wälder | m
kitchen | kitchens | Küche | Küchen | f
street | streets | Straße | Straßen | f
house | houses | Haus | Häuser | n
village | villages | Dorf | Dörfer | n""",
)
TRANSITIVE: tuple[Verb, ...] = _rows(
    Verb,
    """see | sees | seen | sehen | sieht | gesehen
hear | hears | heard | hören | hört | gehört
find | finds | found | finden | findet | gefunden
love | loves | loved | lieben | liebt | geliebt
chase | chases | chased | verfolgen | verfolgt | verfolgt
carry | carries | carried | tragen | trägt | getragen
forget | forgets | forgotten | vergessen | vergisst | vergessen
greet | greets | greeted | grüßen | grüßt | gegrüßt
pick up | picks up | picked up | holen | holt | geholt | ab
invite | invites | invited | laden | lädt | geladen | ein
look at | looks at | looked at | sehen | sieht | gesehen | an
call | calls | called | rufen | ruft | gerufen | an""",
)
INTRANSITIVE: tuple[Verb, ...] = _rows(
    Verb,
    """sleep | sleeps | slept | schlafen | schläft | geschlafen
laugh | laughs | laughed | lachen | lacht | gelacht
sing | sings | sung | singen | singt | gesungen
work | works | worked | arbeiten | arbeitet | gearbeitet
wake up | wakes up | woken up | wachen | wacht | gewacht | auf | sein
arrive | arrives | arrived | kommen | kommt | gekommen | an | sein""",
)
# Verbs that govern an infinitive: "sees the cat running" is "sieht die Katze jagen".
SEEING = TRANSITIVE[:2]
MOVING = (("running", "jagen"), ("walking", "laufen"), ("jumping", "springen"))
ADJECTIVES = (("old", "alt"), ("small", "klein"), ("young", "jung"), ("quick", "schnell"))
THINKING = (("knows", "know", "weiß", "wissen"), ("says", "say", "sagt", "sagen"))

_DEFINITE = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem")}
_INDEFINITE = {
    "m": ("ein", "einen", "einem"),
    "f": ("eine", "eine", "einer"),
    "n": ("ein", "ein", "einem"),
}
_WEAK = {"m": ("e", "en", "en"), "f": ("e", "e", "en"), "n": ("e", "e", "en")}
_MIXED = {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en")}
# The probabilities of no auxiliary, one (two kinds), two (two kinds) and three.
AUXILIARIES = (0.4, 0.2, 0.15, 0.1, 0.05, 0.1)
NOMINATIVE, ACCUSATIVE, DATIVE = range(3)


@dataclass(frozen=True)
class _Clause:
    """A clause without its subject; the order of the German parts depends on the kind of clause.

    english: the English words. finite: the verb that agrees with the subject. last: the other verbs
    at the end of the clause, the innermost first. before: whether the finite verb of a subordinate
    clause comes before the verbs in `last`. particle: the particle of a separable finite verb.
    middle: the German words before the last verbs.
    """

    english: Words
    finite: Words
    last: Words
    before: bool = False
    particle: Words = field(default_factory=list)
    middle: Words = field(default_factory=list)

    def german(self, subordinate: bool) -> Words:
        if not subordinate:
            return self.finite + self.middle + self.particle + self.last
        if self.before:
            return self.middle + self.finite + self.last
        joined = [("".join(word for word, _ in self.particle + self.finite), self.finite[0][1])]
        return self.middle + self.last + joined


@final
class _Writer:
    """Generates one pair; words that translate each other get the same number."""

    def __init__(self, generator: Random) -> None:
        self._random, self._count = generator.random, 0  # stable between Python versions

    def sentence(self, depth: int) -> Example:
        english, german = self._statement(depth)
        stop = (".", self._number())
        english, german = _tidy([*english, stop]), _tidy([*german, stop])
        links = (
            (i, j)
            for i, (_, number) in enumerate(english)
            for j, (_, other) in enumerate(german)
            if number and number == other
        )
        return Example(_written(english), _written(german), tuple(links), depth)

    def _statement(self, depth: int) -> tuple[Words, Words]:
        if self._chance(0.25):  # "... that" and a subordinate clause of this depth
            teller, plural = self._noun_phrase(NOMINATIVE, 0)
            he, they, er, sie = self.one_of(THINKING)
            verb, that = self._number(), self._number()
            english, german = self._clause(depth, subordinate=True)
            return (
                [*teller[0], (they if plural else he, verb), ("that", that), *english],
                [*teller[1], (sie if plural else er, verb), (",", 0), ("dass", that), *german],
            )
        return self._clause(depth, subordinate=False)

    def _clause(self, depth: int, subordinate: bool) -> tuple[Words, Words]:
        (english, german), plural = self._noun_phrase(NOMINATIVE, depth)
        rest = self._predicate(plural, 0)
        return english + rest.english, german + rest.german(subordinate)

    def _noun_phrase(
        self, case: int, depth: int, nouns: Sequence[Noun] = BEINGS
    ) -> tuple[tuple[Words, Words], bool]:
        """Return a noun with article, adjective and relative clause, and whether it is plural."""
        noun: Noun = self.one_of(nouns)
        plural = nouns is BEINGS and self._chance(0.3)
        definite = plural or depth > 0 or self._chance(0.7)
        article, adjective, name = self._number(), self._number(), self._number()
        if plural:
            der, ending = "die", "en"
        elif definite:
            der, ending = _DEFINITE[noun.gender][case], _WEAK[noun.gender][case]
        else:
            der, ending = _INDEFINITE[noun.gender][case], _MIXED[noun.gender][case]
        english = [(noun.englishes if plural else noun.english, name)]
        german = [(noun.germans if plural else noun.german, name)]
        if self._chance(0.25):
            old, alt = self.one_of(ADJECTIVES if nouns is BEINGS else ADJECTIVES[:2])
            english, german = [(old, adjective), *english], [(alt + ending, adjective), *german]
        a = "the" if definite else "an" if english[0][0][0] in "aeiou" else "a"
        english, german = [(a, article), *english], [(der, article), *german]
        if depth:
            relative = self._relative(noun, plural, depth - 1)
            english, german = english + relative[0], german + relative[1]
        return (english, german), plural

    def _relative(self, noun: Noun, plural: bool, depth: int) -> tuple[Words, Words]:
        """A relative clause: ", who sees the cat," or ", whom the cat sees,"."""
        who, before, after = self._number(), self._number(), self._number()
        if self._chance(0.7):
            rest = self._predicate(plural, depth)
            english, german = [("who", who), *rest.english], rest.german(subordinate=True)
            case = NOMINATIVE
        else:
            inner, many = self._noun_phrase(NOMINATIVE, depth)
            rest = self._verbs(self.one_of(TRANSITIVE), many)
            english = [("whom", who), *inner[0], *rest.english]
            german = inner[1] + rest.german(subordinate=True)
            case = ACCUSATIVE
        der = "die" if plural else _DEFINITE[noun.gender][case]
        return (
            [(",", before), *english, (",", after)],
            [(",", before), (der, who), *german, (",", after)],
        )

    def _predicate(self, plural: bool, depth: int) -> _Clause:
        """Verbs with an object, a place or neither; a nested clause needs an object."""
        if depth == 0 and self._chance(0.3):
            rest = self._verbs(self.one_of(INTRANSITIVE), plural)
            return self._somewhere(rest) if self._chance(0.4) else rest
        (english, german), _ = self._noun_phrase(ACCUSATIVE, depth)
        # In deeper sentences it would be unclear who is running.
        if self._chance(0.2) and depth < 2:
            running, jagen = self.one_of(MOVING)
            number, through = self._number(), self._number()
            place, _ = self._noun_phrase(ACCUSATIVE, 0, PLACES)
            rest = self._verbs(self.one_of(SEEING), plural, [(jagen, number)])
            english += [(running, number), ("through", through), *place[0]]
            german += [("durch", through), *place[1]]
        else:
            rest = self._verbs(self.one_of(TRANSITIVE), plural)
        return replace(rest, english=rest.english + english, middle=german)

    def _somewhere(self, rest: _Clause) -> _Clause:
        number = self._number()
        (english, german), _ = self._noun_phrase(DATIVE, 0, PLACES)
        return replace(
            rest,
            english=[*rest.english, ("in", number), *english],
            middle=[*rest.middle, ("in", number), *german],
        )

    def _verbs(self, verb: Verb, plural: bool, inner: Sequence[Word] = ()) -> _Clause:
        """A verb with up to three auxiliaries. inner: the infinitive that it governs, if any."""
        main, first, second, third = (self._number() for _ in range(4))
        to_see = [*inner, (verb.particle + verb.german, main)]
        see = _numbered(verb.english, main)
        can = ("can", "kann", "können") if self._chance(0.5) else ("must", "muss", "müssen")
        has = ("have", "haben") if plural else ("has", "hat")
        drawn = self._random()
        stack = sum(drawn >= share for share in accumulate(AUXILIARIES))
        if stack == 0:  # sees
            sees = _numbered(verb.english if plural else verb.he, main)
            finite = [(verb.german if plural else verb.er, main)]
            return _Clause(sees, finite, [*inner], particle=_numbered(verb.particle, main))
        if stack == 1:  # can see
            modal = [(can[2] if plural else can[1], first)]
            return _Clause([(can[0], first), *see], modal, to_see)
        if stack == 2:  # has seen; "sehen" stays an infinitive if it governs one
            sein = ("sind" if plural else "ist") if verb.perfect == "sein" else has[1]
            english = [(has[0], first), *_numbered(verb.done, main)]
            last = to_see if inner else [(verb.particle + verb.getan, main)]
            return _Clause(english, [(sein, first)], last, before=bool(inner))
        able_to_see = [*_numbered("able to", second), *see]
        last = [*to_see, ("können", second)]
        if stack == 3:  # must be able to see
            english = [("must", first), ("be", second), *able_to_see]
            return _Clause(english, [("müssen" if plural else "muss", first)], last)
        if stack == 4:  # has been able to see
            english = [(has[0], first), ("been", second), *able_to_see]
            return _Clause(english, [(has[1], first)], last, before=True)
        # must have been able to see
        english = [("must", third), ("have", first), ("been", second), *able_to_see]
        hatte = [("hatten" if plural else "hatte", first)]
        return _Clause(english, hatte, [*last, ("müssen", third)], before=True)

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _chance(self, share: float) -> bool:
        return self._random() < share

    def one_of(self, things: Sequence[Any]) -> Any:
        return things[int(self._random() * len(things))]


def _numbered(words: str, number: int) -> Words:
    return [(word, number) for word in words.split()]


def _tidy(words: Words) -> Words:
    """Merge repeated commas and capitalize the first word."""
    kept = [
        (word, number)
        for (word, number), (after, _) in zip(words, [*words[1:], ("", 0)], strict=True)
        if not word == after == ","
    ]
    first, number = kept[0]
    return [(first[0].upper() + first[1:], number), *kept[1:]]


def _written(words: Words) -> str:
    return " ".join(word for word, _ in words).replace(" ,", ",").replace(" .", ".")

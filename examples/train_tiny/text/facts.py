"""Short factual texts: capitals and continents, animals, colours, calendar, opposites, greetings, arithmetic."""

from __future__ import annotations

from examples.train_tiny.text import words
from examples.train_tiny.text.grammar import Draw, expand

_COUNTRY_FORMS = [
    "$K is the capital of $C.",
    "The capital of $C is $K, and the country is in $N.",
    "^$C is a country in $N. Its capital is $K.",
    "^$C is in $N.",
    "The capital city of $C is $K.",
    "$K, the capital of $C, is {a large|a beautiful|an old|a lively} city.",
    "The $P capital is $K.",
    "If you travel to $C, you {can|should} visit $K.",
    "People from $C are $P.",
    "Many {people|visitors} come to $K to {see the museums|eat $P food|learn about $P history|walk around}.",
    "^$C lies in $N, and $K is its capital.",
    "I have a friend who lives in $K, the capital of $C.",
    "$K is in $C, and $C is in $N.",
    "What is the capital of $C? It is $K.",
    "Q: What is the capital of $C?\nA: $K",
    "Country: $C\nCapital: $K\nContinent: $N",
]
_ANIMAL_FORMS = [
    "A $A {$S|often $S}.",
    "A young $A is called a $Y.",
    "A $A lives in $H.",
    "A $A eats $F.",
    "A $A has $L legs.",
    "The $Y is the young of the $A.",
    "The $A {eats $F and lives in $H|lives in $H and eats $F}.",
    "What does a $A eat? It eats $F.",
    "Where does a $A live? It lives in $H.",
]
_COUNTABLE = words.split_words("apples pears coins books shells stones marbles cakes eggs flowers stamps buttons")
_GREETING_FORMS = [
    '"$G" is how you say hello in $L.',
    'In $L, thank you is {said as |}"$T".',
    "$G! {My name is $W.|I am $W.|How are you, $W?} $E",
    "Hello in $L: $G\nThank you in $L: $T",
    "$T, $W! $E",
]


def capital(draw: Draw) -> str:
    """A sentence or two about a country: its capital, its continent or its people."""
    country, capital_city, continent, people = draw.one(words.COUNTRIES)
    scope = {"C": country, "K": capital_city, "N": continent, "P": people}
    form = "The capital of $C is $K." if draw.chance(0.4) else draw.one(_COUNTRY_FORMS)
    return expand(form, scope, draw)


def animal(draw: Draw) -> str:
    """A sentence about an animal: its sound, young, home, food or legs."""
    name, sound, young, home, food, legs = draw.one(words.ANIMAL_FACTS)
    legs_word = words.NUMBERS[int(legs)]
    return expand(
        draw.one(_ANIMAL_FORMS), {"A": name, "S": sound, "Y": young, "H": home, "F": food, "L": legs_word}, draw
    )


def colour(draw: Draw) -> str:
    """A sentence about the colour of a thing, or about mixing colours."""
    if draw.chance(0.25):
        first, second, mixed = draw.one(
            [("red", "yellow", "orange"), ("blue", "yellow", "green"), ("red", "blue", "purple")]
        )
        mixing = {"A": first, "B": second, "M": mixed}
        return expand("{If you mix $A and $B, you get $M.|^$A and $B make $M.}", mixing, draw)
    thing, its_colour = draw.one(words.THING_COLOURS)
    scope = {"T": thing, "C": its_colour}
    return expand("{^$T is $C.|^$T is usually $C.|The colour of $T is $C.|What colour is $T? It is $C.}", scope, draw)


def calendar(draw: Draw) -> str:
    """A sentence about days, months, seasons or clocks."""
    day, month = draw.number(0, 6), draw.number(0, 11)
    scope = {
        "D": words.DAYS[day],
        "E": words.DAYS[(day + 1) % 7],
        "B": words.DAYS[(day - 1) % 7],
        "M": words.MONTHS[month],
        "N": words.MONTHS[(month + 1) % 12],
        "L": words.MONTHS[(month - 1) % 12],
        "S": words.SEASON_OF_MONTH[month],
        "C": str(words.DAYS_IN_MONTH[month]),
        "O": str(month + 1),
    }
    return expand(
        "{The day after $D is $E.|The day before $D is $B.|If today is $D, tomorrow is $E{, and yesterday was $B|}.|"
        "The month after $M is $N.|The month before $M is $L.|In the north, $M is in $S.|$M has $C days"
        "{ in most years|}.|$M is month number $O of the year.|After $D comes $E.|After $M comes $N.|"
        "A week has seven days.|A year has twelve months.|An hour has sixty minutes.|A day has 24 hours.}",
        scope,
        draw,
    )


def opposite(draw: Draw) -> str:
    """A sentence about two words of opposite meaning."""
    first, second = draw.one(words.OPPOSITES)
    scope = {"A": first, "B": second} if draw.chance(0.5) else {"A": second, "B": first}
    return expand(
        '{The opposite of $A is $B.|The opposite of "$A" is "$B".|^$A is the opposite of $B.|What is the opposite of '
        "$A? It is $B.|If something is not $A, it may be $B.}",
        scope,
        draw,
    )


def greeting(draw: Draw) -> str:
    """A greeting in another language, with accents, other scripts and emoji."""
    language, hello, thanks = draw.one(words.GREETINGS)
    scope: dict[str, str | list[str]] = {"L": language, "G": hello, "T": thanks, "E": words.EMOJI}
    scope["W"] = words.GIRLS + words.BOYS
    return expand(draw.one(_GREETING_FORMS), scope, draw)


def _operation(draw: Draw) -> tuple[int, str, str, int, int]:
    """Two numbers, the sign between them, its word, and the result; sums of small numbers are the most common."""
    kind = draw.number(0, 9)
    if kind < 5:
        high = draw.one([5, 9, 10, 20, 50])
        first, second = draw.number(0, high), draw.number(0, high)
        return first, "+", "plus", second, first + second
    if kind < 8:
        first = draw.number(0, draw.one([9, 10, 20, 30]))
        second = draw.number(0, first)
        return first, "-", "minus", second, first - second
    first, second = draw.number(0, 10), draw.number(0, 10)
    return first, draw.one(["*", "x", "\u00d7"]), "times", second, first * second


def arithmetic(draw: Draw) -> str:
    """One small sum in one of several forms."""
    first, sign, word, second, result = _operation(draw)
    scope = {"A": str(first), "S": sign, "W": word, "B": str(second), "R": str(result)}
    if max(first, second) <= 20 and result <= 20 and draw.chance(0.2):
        spelled = {"A": words.NUMBERS[first], "B": words.NUMBERS[second], "R": words.NUMBERS[result]}
        return expand("^$A $W $B is $R.", scope | spelled, draw)
    return expand(
        "{$A $S $B = $R|$A $S $B = $R|$A $S $B = $R|$A $S $B = $R.|$A $W $B is $R.|$A $W $B equals $R.|"
        "What is $A $S $B? It is $R.|Q: $A $S $B\nA: $R|The answer to $A $S $B is $R.}",
        scope,
        draw,
    )


def counting(draw: Draw) -> str:
    """A small problem in words, with its answer, or a line of numbers in order."""
    first, second = draw.number(2, 10), draw.number(2, 10)
    if draw.chance(0.25):
        step = draw.one([1, 1, 2, 5, 10])
        return ", ".join(str(first + step * index) for index in range(draw.number(4, 12))) + "."
    is_female = draw.chance(0.5)
    scope: dict[str, str | list[str]] = {
        "N": draw.one(words.GIRLS if is_female else words.BOYS),
        "he": "she" if is_female else "he",
        "T": draw.one(_COUNTABLE),
        "A": str(first + second),
        "B": str(second),
        "R": str(first),
        "S": str(first + 2 * second),
    }
    return expand(
        "$N has $A $T. ^$he {{gives away|loses|sells} $B $T. Now $he has $R $T.|{gets|finds|buys} $B more $T. Now $he "
        "has $S $T.}",
        scope,
        draw,
    )


_KINDS = [capital] * 8 + [animal] * 3 + [colour, calendar, calendar, opposite, opposite, greeting, greeting]


def facts(draw: Draw) -> str:
    """One to six facts, mostly of one kind, on one line or on several. `draw` is mutated."""
    kind = draw.one(_KINDS)
    joiner = draw.one([" ", " ", "\n"])
    return joiner.join(kind(draw) for _ in range(draw.one([1, 1, 2, 3, 4, 6])))


def sums(draw: Draw) -> str:
    """One to eight sums or counting problems, one per line. `draw` is mutated."""
    kind = arithmetic if draw.chance(0.8) else counting
    return "\n".join(kind(draw) for _ in range(draw.one([1, 1, 2, 3, 5, 8])))


def small_sums(draw: Draw) -> str:
    """Two to eight sums of one-digit numbers, most of them written "a + b = c". `draw` is mutated."""
    lines = []
    for _ in range(draw.number(2, 8)):
        first, second = draw.number(0, draw.one([5, 9])), draw.number(0, draw.one([5, 9]))
        form = draw.one(["{a} + {b} = {c}"] * 4 + ["{a} plus {b} is {c}.", "What is {a} + {b}? It is {c}."])
        lines.append(form.format(a=first, b=second, c=first + second))
    return "\n".join(lines)

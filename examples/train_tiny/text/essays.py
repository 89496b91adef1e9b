"""Self-introductions and short expository paragraphs: what people think of science, weather, food, AI and the rest."""

from __future__ import annotations

from examples.train_tiny.text import words
from examples.train_tiny.text.grammar import Draw, expand
from examples.train_tiny.text.stories import LISTS

# topic|does it take "are"|who works with it|what it helps people to do|a part of it
TOPICS = words.split_rows("""AI|is|researchers|find patterns in large amounts of data|a language model
AI|is|engineers|answer questions and write text|a computer that learns
AI|is|scientists|read X-rays and design new medicines|a machine that can see
artificial intelligence|is|programmers|translate from one language to another|a neural network
science|is|scientists|understand how the world works|an experiment
medicine|is|doctors|stay healthy and live longer|a new vaccine
the weather|is|farmers|plan the day|a dark cloud
food|is|cooks|stay strong and share time together|a simple soup
music|is|musicians|say what words cannot say|a quiet song
art|is|painters|see the world with new eyes|a small painting
education|is|teachers|learn from those who came before|a good question
books|are|writers|travel without leaving home|a short story
sport|is|players|keep fit and make friends|a fair game
travel|is|travellers|meet other people and learn new habits|a long train ride
the sea|is|sailors|trade with distant lands|a deep current
the ocean|is|biologists|understand the climate|a coral reef
forests|are|foresters|breathe clean air|an old oak
trees|are|gardeners|find shade in summer|a young birch
cities|are|architects|live and work close together|a busy street
trains|are|engineers|travel far without a car|a night train
bicycles|are|mechanics|move quickly through the town|a good chain
computers|are|engineers|work with numbers and words|a fast chip
robots|are|engineers|do heavy and dangerous work|a strong arm
space travel|is|astronauts|learn how the planets were made|a rocket
energy|is|physicists|heat homes and move machines|a solar panel
water|is|chemists|drink, wash and grow food|a clean river
farming|is|farmers|feed the growing cities|a field of wheat
mathematics|is|mathematicians|describe patterns exactly|a short proof
history|is|historians|understand why things are as they are|an old letter
language|is|linguists|share ideas across time|a new word
sleep|is|doctors|remember what they learned|a dark and quiet room
friendship|is|writers|get through hard times|an honest talk
the internet|is|programmers|find information in seconds|a simple web page
photography|is|photographers|keep a moment for later|a good lens
cooking|is|cooks|turn simple things into a meal|a sharp knife
work|is|managers|earn a living and use their skills|a clear plan
gardens|are|gardeners|rest after a long day|a bed of roses
animals|are|biologists|understand life itself|a wild fox
the moon|is|astronomers|measure the months|a full moon
stars|are|astronomers|find their way at night|a distant sun
winter|is|children|enjoy the snow|a frozen lake
summer|is|children|spend more time outside|a warm evening
reading|is|teachers|imagine other lives|a good book
transport|is|planners|reach work and school|an electric bus
money|is|bankers|trade goods and save for later|a small coin
law|is|judges|live together in peace|a fair trial
health|is|nurses|enjoy every day|a daily walk
chess|is|players|think several moves ahead|a quiet move
coffee|is|farmers|wake up in the morning|a small cup
bread|is|bakers|start the day well|a warm loaf""")

_LISTS: dict[str, list[str]] = {
    **LISTS,
    "GOOD": words.split_words(
        "important useful interesting exciting valuable beautiful wonderful powerful remarkable fascinating helpful "
        "surprising complex simple necessary promising demanding changing"
    ),
    "GROUP": words.split_words(
        "people|children|students|scientists|families|teachers|doctors|workers|small companies|large companies|"
        "schools|hospitals|towns|farmers|artists|governments|young people|older people|researchers|engineers",
        "|",
    ),
    "REASON": [
        "because $it help$s {us|people|$GROUP} to $HELP",
        "because {we|people|$GROUP} can use $them to $HELP",
        "because $it {change|shape|support}$s the way {we|people|$GROUP} {live|think|work|learn}",
        "since {no one|nobody} can {live|do|learn} without {$them|help}",
        "because $it {bring$s people together|open$s new doors|save$s time|raise$s good questions|cost$s very little}",
        "although $it {take$s time|$is not always easy|can be difficult to explain|$has limits}",
        "even if {some people|$GROUP} {do not agree|see it differently|are not sure}",
        "especially for $GROUP",
    ],
    "ACT": [
        "learn to $HELP",
        "work more closely with $WHO",
        "change the way $GROUP {work|learn|live|travel|talk to each other}",
        "make {life|work|learning} {easier|safer|better} for $GROUP",
        "help $GROUP to {solve {hard|old|new} problems|make better {choices|plans|decisions}|save {time|energy}|$HELP}",
        "become {a normal part of daily life|cheaper|faster|more common|easier to understand|part of every school}",
        "bring new {questions|ideas|jobs|tools|rules} to $GROUP",
        "depend on {good data|careful work|clear rules|trust|public debate|the choices we make today}",
    ],
    "DOUBT": [
        "there are {also |still |}{many|some|several} {risks|problems|open questions|limits}",
        "not everyone {agrees|is so hopeful|is convinced}",
        "$GROUP {worry|ask} about {the cost|safety|privacy|their jobs|what may go wrong}",
        "it is {hard|difficult|not possible} to {know|say|predict} {exactly |}what will {happen|change|come next}",
        "we {should|must} {be careful|think before we act|listen to $GROUP|not forget $GROUP}",
        "{progress|change|good work} {takes|needs} {time|patience|money|courage}",
    ],
    "LINK": ["However,", "At the same time,", "Of course,", "In the end,", "Still,", "On the other hand,", "Today,"],
    "LATER": [
        "In the future,",
        "In the coming years,",
        "One day,",
        "Over the next ten years,",
        "Soon,",
        "Step by step,",
    ],
    "FUTURE": [
        "$GOOD, $REASON.",
        "{full of|rich in} {promise|surprises|questions|new ideas|hope}{, $REASON|}.",
        "{hard|difficult|easy} to {predict|imagine|describe}{, but $DOUBT|}.",
        "{in our hands|in the hands of $GROUP|not written yet|open|still unknown}{, and $DOUBT|}.",
        "{likely|certain|expected|going} to $ACT.",
        "{about|not only about} {helping|working with|listening to} $GROUP{, $REASON|}.",
        "{bright|uncertain}, {and|but} $DOUBT.",
        "something that {$GROUP|$WHO} {think|talk|write} about every day.",
        "closer than {many|most} $GROUP {think|believe|expect}.",
        "a question for {all of us|$GROUP|$WHO}, and not only for $WHO.",
        "a {story|task|subject} that {begins|starts} with {$PART|$GROUP|$WHO}.",
    ],
    "SENTENCE": [
        "^$T $is {very |also |often |}$GOOD, $REASON.",
        "^$T $is $GOOD and $GOOD.",
        "{Many|Some|Most} {people|$GROUP} {think|believe|say|know} that $T $is $GOOD.",
        "{I|We} {think|believe} that $T $is $GOOD, $REASON.",
        "^$WHO {use|study|work with|care about} $T to {help $GROUP|$HELP|find new answers}.",
        "$LATER $T will $ACT.",
        "$LATER $T may $ACT.",
        "{For example|For instance}, {$PART can help $GROUP|$PART can make a {big|small|real} difference|$WHO often "
        "begin with $PART}.",
        "$LINK $DOUBT.",
        "$LINK $T $is {more $GOOD than {many|most} $GROUP think|not the answer to every problem}.",
        "Without $T, {life|the world|our town} would be {very different|poorer|slower|less $GOOD}.",
        "{It|This} is why $GROUP {need|want|learn about|talk about} $T.",
        "{To understand|If you want to understand} $T, {you should|it helps to} start with $PART.",
        "The future of $T is $FUTURE",
        "There is {much|a lot} to learn about $T, and $DOUBT.",
        "The {first|best|hardest|most $GOOD} part is {often |usually |}$PART.",
        "What {makes|is it that makes} $T so $GOOD? {Perhaps it is $PART|Some say it is $PART|Ask $GROUP, and they "
        "will tell you}.",
    ],
    "CITY": [country[1] for country in words.COUNTRIES],
    "PEOPLE": [country[3] for country in words.COUNTRIES],
    "NAME": words.GIRLS + words.BOYS,
    "SURNAME": words.SURNAMES,
    "AGE": [str(age) for age in range(5, 71)],
    "KIN": ["mother", "father", "sister", "brother", "grandmother", "grandfather", "aunt", "uncle", "best friend"],
    "INTRO": [
        "I am a $JOB from $CITY.",
        "I live in {$CITY|a $ADJ house in $CITY|a small {town|village} near $CITY} with my {$KIN|family|$ANIMAL}.",
        "I am $AGE years old.",
        "I like to $HOBBY.",
        "I {love|like} $FOOD, but I do not like $FOOD.",
        "In my free time I $HOBBY{ and $HOBBY|}.",
        "My favourite {colour is $COLOUR|day is $DAY|month is $MONTH|food is $FOOD|animal is the $ANIMAL}.",
        "My $KIN {is a $JOB|lives in $CITY|likes to $DO}.",
        "I have a $ADJ $ANIMAL {named|called} $NAME.",
        "I want to {become|be} a $JOB{ because I like to $HOBBY|}.",
        "I {work as a $JOB|have worked as a $JOB for $NUM years}.",
        "I speak English and {French|German|Spanish|Italian|Polish|Greek|Dutch|Turkish|Arabic|Japanese}.",
        "On {weekends|$DAYs|rainy days} I {often |usually |}$HOBBY.",
        "I {moved|came} to $CITY $NUM years ago.",
        "It is {nice|good|a pleasure} to meet you.",
    ],
    "AFTER_NAME": [
        "I am a $JOB from $CITY.",
        "I am $AGE years old.",
        "I live in {$CITY|a small {town|village} near $CITY} with my {$KIN|family|$ANIMAL}.",
        "I like to $HOBBY.",
        "I {love|like} $FOOD and $FOOD.",
        "I work as a $JOB{ in $CITY|}.",
        "I have $NUM {brothers|sisters|cats|children}.",
        "I want to {become|be} a $JOB.",
        "I am {learning|trying} to $HOBBY.",
        "I {come|am} from $CITY.",
    ],
    "LETTER": [
        "It {is|has been} {cold|warm|rainy|sunny|windy} {here|in $CITY} {today|this week|since $DAY}.",
        "{Yesterday|On $DAY} I {saw|bought|found} a $ADJ $TOY {at|near} the $PLACE.",
        "{My|Your} $KIN {is well|says hello|wants to $HOBBY}.",
        "{I am reading|I have read} a book about {a $ANIMAL|the sea|a $CHARACTER $JOB|stars|old maps}.",
        "I {will|want to} {visit you|come to $CITY|see you} {in $MONTH|next $DAY|soon}.",
        "{Do you still|Would you like to} $HOBBY{ with me|}?",
        "{How are you|How is the weather in $CITY|How is your $KIN}?",
        "Thank you for the {letter|$FOOD|$ADJ $TOY}.",
        "We ate $FOOD and {danced|sang|laughed|talked} until {late|midnight|dark}.",
    ],
    "SIGHT": [
        "The $PLACE is {quiet|busy|open|closed} {today|on $DAYs|in $MONTH}.",
        "A $ADJ $ANIMAL is $DOING {near|behind} the $PLACE.",
        "There {is a $ADJ $TOY|are $NUM {chairs|boats|lamps|trees|books|boxes}} "
        "{on|beside|under} the {table|bridge|wall}.",
        "^{two|three|$NUM} {children|men|women|friends} are $DOING.",
        "The $JOB {has|wants|needs|is looking for} a $ADJ $TOY.",
        "Every $DAY, {the $JOB|a $JOB} {goes to the $PLACE|comes here|sells $FOOD}.",
        "$NAME {has|lost|found} a $ADJ $TOY, and $NAME has a $ADJ one too.",
        "If it rains, we will {stay at home|go to the $PLACE|$HOBBY}.",
        "When the $ANIMAL {saw|heard} the $JOB, it $DID.",
        "The $TOY that $NAME bought is $ADJ and $ADJ.",
    ],
}


def introduction(draw: Draw) -> str:
    """Someone says who they are, most often as "Hello, my name is ... and I ...". `draw` is mutated."""
    opening = draw.one(
        [
            "Hello, my name is $NAME and $AFTER_NAME",
            "Hello, my name is $NAME and $AFTER_NAME",
            "Hello, my name is $NAME. $AFTER_NAME",
            "Hello, my name is $NAME $SURNAME, and $AFTER_NAME",
            "{Hi|Good morning|Good evening|Dear friends}, {I am|my name is} $NAME{| $SURNAME}. $INTRO",
            "My name is $NAME{| $SURNAME}. $INTRO",
        ]
    )
    middle = " ".join(draw.several(_LISTS["INTRO"][:-1], draw.number(1, 4)))
    ending = draw.one(["", "", " It is nice to meet you.", " Thank you for listening.", " What is your name?"])
    return expand(f"{opening} {middle}{ending}", _LISTS, draw)


def essay(draw: Draw, about: tuple[str, ...] | None = None) -> str:
    """A paragraph of two to eight sentences about one topic of `TOPICS`. `draw` is mutated."""
    topic, verb, who, helps, part = about or (draw.one(TOPICS) if draw.chance(0.8) else draw.one(TOPICS[:4]))
    scope = _LISTS | {"T": topic, "is": verb, "WHO": who, "HELP": helps, "PART": part}
    if verb == "are":
        scope |= {"it": "they", "them": "them", "s": "", "has": "have"}
    else:
        scope |= {"it": "it", "them": "it", "s": "s", "has": "has"}
    sentences = [draw.one(_LISTS["SENTENCE"]) for _ in range(draw.number(2, 8))]
    if draw.chance(0.3):
        sentences[0] = "The future of $T is $FUTURE"
    text = expand(" ".join(sentences), scope, draw)
    return f"{topic[0].upper()}{topic[1:]}\n\n{text}" if about is None and draw.chance(0.15) else text


def letter(draw: Draw) -> str:
    """A short letter between two people. `draw` is mutated."""
    body = " ".join(draw.several(_LISTS["LETTER"], draw.number(2, 6)))
    ending = draw.one(["Yours,", "Love,", "Best wishes,", "See you soon,", "Many greetings,"])
    emoji = f" {draw.one(words.EMOJI)}" if draw.chance(0.2) else ""
    return expand(f"Dear $NAME,\n\n{body}{emoji}\n\n{ending}\n$NAME", _LISTS, draw)


def sights(draw: Draw) -> str:
    """A few unconnected sentences with agreement in number and tense. `draw` is mutated."""
    return expand(" ".join(draw.several(_LISTS["SIGHT"], draw.number(1, 6))), _LISTS, draw)

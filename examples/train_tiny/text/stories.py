"""Short stories for children: people or animals with names, a place, a problem, a reason, an end."""

from __future__ import annotations

from examples.train_tiny.text import words
from examples.train_tiny.text.grammar import Draw, expand

LISTS: dict[str, list[str]] = {
    "ADJ": words.ADJECTIVES,
    "CHARACTER": words.CHARACTER,
    "FEELING": words.FEELINGS,
    "ANIMAL": words.ANIMALS,
    "TOY": words.TOYS,
    "FOOD": words.FOODS,
    "FRUIT": words.FRUITS,
    "PLACE": words.PLACES,
    "COLOUR": words.COLOURS,
    "DAY": words.DAYS,
    "MONTH": words.MONTHS,
    "NUM": words.NUMBERS[2:13],
    "DID": [verb[2] for verb in words.VERBS_INTRANSITIVE],
    "DO": [verb[0] for verb in words.VERBS_INTRANSITIVE],
    "DOING": [verb[3] for verb in words.VERBS_INTRANSITIVE],
    "DIDTO": [verb[2] for verb in words.VERBS_OBJECT],
    "HOBBY": words.HOBBIES,
    "JOB": words.JOBS,
    "NEAR": ["near", "behind", "in front of", "next to", "not far from", "beside", "at the edge of", "close to"],
    "SPOT": [
        "under the {old|big|wooden} {bench|table|bridge|tree}",
        "behind the {door|curtain|fence|wall|barn}",
        "on top of the {roof|hill|shelf|wall}",
        "inside a {box|basket|hollow tree|drawer}",
        "between two {stones|bushes|books|chairs}",
        "in the {tall|wet} grass",
        "at the bottom of the {pond|stairs|bag|garden}",
    ],
    "SCENE": [
        "The sun was {shining|warm|high in the sky|just coming up}.",
        "It was a {cold|windy|rainy|quiet|bright|cloudy|misty} {morning|day|afternoon}.",
        "The wind blew {softly|hard|gently} through the {trees|grass|reeds|streets}.",
        "Snow lay on the {roofs|fields|hills|branches}.",
        "There was not a {cloud|star|sound} {in the sky|to be seen|anywhere}.",
        "Rain fell on the {roof|leaves|road|windows}.",
        "The air smelled of {flowers|rain|bread|the sea|wet leaves|pine trees}.",
        "Far away a $ANIMAL made a {strange|soft|loud|funny} sound.",
        "A $COLOUR {butterfly|bird|leaf|feather} {flew|floated} by.",
        "Two $ADJ {birds|clouds|boats|leaves} {moved|drifted|passed} slowly {overhead|over the water|in the wind}.",
        "",
        "",
        "",
    ],
    "SAID": ["said", "said", "answered", "whispered", "cried", "called", "laughed"],
    "OH": ["Oh no", "Oh dear", "Look", "Wait", "Hello", "Listen", "Hooray", "Well"],
    "OPENING": [
        "Once upon a time, there was a $CHARACTER $kind named $H. $scene_home",
        "One day, $H went to the $place with $his $relative. $SCENE",
        "One {sunny|rainy|cold|windy|quiet} {morning|afternoon|evening}, $H was {in|near} the $place. $SCENE",
        "$H was a $CHARACTER $kind who lived $NEAR the $place. $H liked to $DO and to $DO.",
        "There was once a $CHARACTER $kind called $H. ^$he had a {best friend|good friend|neighbour} named $F.",
        "On $DAY, $H and $F met {at|near} the $place. $SCENE",
        "It was {the first|the last} day of $MONTH, and $H was $FEELING. $SCENE",
        "$H the $kind loved {the $place|to $DO|$FOOD|{{stories|songs} about|pictures of} the {sea|moon|stars}}. "
        "Every {day|$DAY|morning}, $he $DID {there |}for {an hour|a long time}.",
        "In a {small|quiet|busy|little} {town|village} $NEAR the $place lived a $kind named $H. $scene_home",
        '"Can we go to the $place {today|now|on $DAY}?" asked $H. "{Yes|Of course}, but take $F with you," '
        "$SAID $his $relative. So $H and $F went to the $place.",
    ],
    "scene_home": [
        "^$he lived in a $ADJ {house|cottage|hut|tent} $NEAR the $place with $his $relative.",
        "^$he was always $FEELING when it was time to $DO.",
        "^$he had a $ADJ $TOY and a $ADJ $TOY, but $he did not have a $thing.",
        "Everyone in the {village|town} knew that $he was very $CHARACTER.",
        "$SCENE",
    ],
    "FILL": [
        "$SCENE",
        "They $DID and $DID for a while.",
        "$H $DID, and $F $DID too.",
        "^$he saw a $ADJ $ANIMAL and a $ADJ $TOY on the way.",
        "A $CHARACTER $ANIMAL was $DOING $NEAR the $place.",
        "They passed a $JOB who was carrying a $ADJ $TOY.",
        '"I am {so|very|a little} $FEELING," $SAID {$H|$F}.',
        '"Do you hear that?" asked {$H|$F}. It was only a $ADJ $ANIMAL.',
        "$F had a $FRUIT and gave half of it to $H.",
        "",
        "",
        "",
    ],
    "ENDING": [
        "{From that day on|After that day}, $H and $F were {the best of friends|good friends}.",
        "$H went home and {told $his $relative everything|slept well|ate some $FOOD}.",
        "{That night|In the evening}, $H $DID {and was $FEELING|and thought about the $thing}.",
        "Everyone was happy, and they all ate $FOOD together.",
        "$H learned that {it is good to share|it is important to tell the truth|friends help each other|"
        "being $CHARACTER is better than being {rich|fast|strong}|you should never give up|"
        "it is fine to ask for help|small things can make a big difference}.",
        '"{Thank you|Thanks}, $F," $SAID $H. "You are a {good|true|real} friend."',
        "And $H never {lost|forgot} the $thing again.",
        "They {laughed|smiled} and went home {together|before it was dark|hand in hand}.",
        "The end.",
        "$H was $FEELING, but $he was also very happy.",
    ],
}

PLOTS: list[list[str]] = [
    [  # lost and found
        "$H had a $adj $thing. ^$he took it everywhere. {But one day|Then}, the $thing was gone.",
        "$H looked $SPOT and $SPOT, but $he could not find it. ^$he was very {sad|worried}.",
        '"{What is wrong|Why are you so sad}, $H?" asked $F. "I {lost|cannot find} my $thing," $SAID $H.',
        '"{Do not worry|Do not cry}," $SAID $F. "{I will help you|We can look together}." $FILL',
        "They {looked|searched} $SPOT. At last $F saw something $adj $SPOT. It was the $thing!",
        '$H {hugged|thanked} $F. "You found my $thing!" $he {said|cried}.',
    ],
    [  # sharing
        '$F had a $adj $thing. $H {wanted|wished} to play with it, but $F said no. "It is mine," said $F.',
        "$H was sad and went {home|away|to the $PLACE}. $F played alone, but it was not fun. $FILL",
        'After a while, $F came to $H. "I am sorry," said $F. "{Do you want to|Shall we} play with my $thing?"',
        '"Yes, please!" said $H. They played with the $thing {all day|until {dinner|dark}|for hours}.',
        "Then $H gave $F a $FRUIT, because $he wanted to share too.",
    ],
    [  # helping an animal
        "$H {heard|saw} a $ADJ $ANIMAL $SPOT. It was {hurt|lost|cold|hungry|stuck} and it could not $DO.",
        '"{Poor thing|Poor little one}!" said $H. "I {will|must} help you." $FILL',
        "$H gave it some $FOOD and {put it in a warm box|made a bed for it|stayed with it all night}.",
        '^$his $relative said, "You are very {kind|brave|good}, $H. It needs {rest|water|time}."',
        "After $NUM days the animal could $DO again. It was no longer afraid of $H.",
        "Then it went back to the $PLACE, but it often came to see $H.",
    ],
    [  # storm
        "Suddenly the sky became {dark|grey|black} and it began to {rain|snow|hail}. The wind was very {strong|loud}.",
        "$H and $F {ran|hurried} to {a barn|a cave|the mill|an old tower}, because they did not want to get "
        "{wet|cold}. $FILL",
        '"I am {scared|afraid}," $SAID $F. "{Hold my hand|Do not be afraid}," said $H. "It {will soon be over|'
        'is only a storm}."',
        "To pass the time, they {sang a song|told stories|counted to $NUM|shared a $FRUIT|made a plan}.",
        "When the {rain|storm} stopped, there was a {rainbow|bright star|clear blue sky} over the $place.",
    ],
    [  # making something
        "$H wanted to {make|build} a $thing for $his $relative, because {tomorrow|$DAY} was $relposs birthday.",
        "First, $he needed {wood|paper|string|paint|glue} and a $TOY. $F brought {them|everything} from the $PLACE.",
        "They worked {all day|for $NUM hours|until it was dark}. $FILL It was {hard|not easy}, but they did not stop.",
        "{At first|Once} the $thing {fell apart|broke|was too small|looked strange}, so they {tried|began} again.",
        "{At last|In the end} the $thing was ready. It was {$adj and $ADJ|very beautiful|better than $H had hoped}.",
        '$H gave it to $his $relative. "{How lovely|What a wonderful present}!" said $his $relative.',
    ],
    [  # garden
        "In {spring|$MONTH}, $H {planted|put} {a seed|$NUM seeds|a small tree} in the garden {behind the house|"
        "$NEAR the $place}.",
        'Every {morning|day} $he gave {it|the garden} water. "{When will something grow|Why is nothing there}?" '
        'asked $H. "You must be patient," said $F.',
        "A week {went by|passed}. $FILL Then a {small|tiny} green leaf came out of the {ground|earth}.",
        "In {summer|August}, there were {many|$NUM} {flowers|tomatoes|carrots|strawberries|pumpkins}. "
        "$H was {proud|happy}.",
        "^$he picked {the best one and gave it|some of them and gave them} to $F.",
    ],
    [  # a lie and the truth
        "$H was playing with a $TOY in the {house|kitchen|room}. {Crash|Bang}! The $adj $thing fell and broke.",
        '^$his $relative came in. "Who did this?" $rel_he asked. "It was {the $ANIMAL|the wind|$F}," said $H.',
        "But $H felt {bad|terrible|sad}. ^$he could not {eat|sleep|play}. $FILL",
        '{In the evening|The next day}, $H said, "I am sorry. I broke the $thing. I did not tell the truth."',
        '"Thank you for {telling me|being honest}," said $his $relative. "{We can fix it|It is only a $thing}."',
    ],
    [  # race
        '$F said, "I am the fastest {in the whole {town|village|school}|of all}. Nobody can {beat|catch} me." '
        '"Let us have a race '
        'to the $goal," said $H.',
        '^{$NUM animals|many friends} came to watch. "One, two, three, go!" {cried|called} a $ANIMAL.',
        "$F ran very fast and was soon far {ahead|away}. Then $he_f stopped to {rest|eat a $FRUIT|look at a "
        "$ANIMAL|$DO}. $FILL",
        "$H was slow, but $he did not stop. Step by step, $he came closer and closer.",
        "When $F looked up, $H was already at the $goal. $H had won!",
        '"You were faster," said $H, "but I did not {stop|give up}."',
    ],
    [  # treasure
        "$H found {an old map|a letter|a small key} $SPOT. It showed a way to {a treasure|a secret place|an old chest} "
        "$NEAR the $PLACE.",
        '"{Shall we go|Will you come with me}?" asked $H. "Yes, let us go {now|at once|tomorrow}!" said $F.',
        "They {walked|went} over the hill, across the bridge and through the {forest|field|valley}. $FILL",
        "There they found a $ADJ box. $H opened it. Inside there was a $adj $thing{ and $NUM {coins|letters|shells}|}.",
        '"It is {not gold|so $ADJ}, but it is {wonderful|beautiful}," said $H. They {took it home|showed it to '
        "everyone|left it there for the next child}.",
    ],
    [  # new at school
        "$F was new {at school|in the village|in town}. ^$he_f did not know anyone, and $he_f was "
        "{shy|lonely|nervous}.",
        '$H saw $him_f sitting alone $SPOT. "Hello, my name is $H. What is your name?" asked $H.',
        '"My name is $F," said $F {quietly|with a small smile}. "Do you like to $DO?" asked $H. "Yes, I do!"',
        "So they $DID together {every day|all afternoon}. $FILL $F showed $H how to make a {paper $TOY|$ADJ $TOY}.",
        "Soon $F was not {lonely|shy} any more, because $he_f had a friend.",
    ],
    [  # cooking
        '$H was hungry, but there was no $FOOD {in the house|left}. "{Let us|We can} make some {soup|bread|pancakes|'
        'cake}," said $F.',
        "They took {some|a bag of} {flour|salt|sugar|corn}, {an|one} egg and $NUM {apples|carrots|onions|pears}. $FILL",
        "$H {mixed|stirred} everything in a $ADJ {bowl|pot}. $F made a fire and waited.",
        "{Oh no|Oops}! {It was too hot|There was too much salt|The pot was too small}, and $H laughed. So they tried "
        "once more.",
        "{At last|Then} dinner was ready. It tasted {good|wonderful|a bit strange, but nice}. $F ate $NUM plates.",
    ],
    [  # afraid of the dark
        "$H was afraid of {the dark|deep water|high places|the old $PLACE}. ^$he never went there {alone|at night}.",
        'One {night|evening} $F did not come home. "$F may be {lost|in trouble}," said $his $relative.',
        "$H took a {lamp|lantern|candle} and went out. ^$his heart beat fast. $FILL",
        '"$F! Where are you?" $he called. "I am here, $SPOT!" $F {cried|answered}.',
        "$H helped $him_f {up|out}, and they walked home together. $H was not afraid any more.",
    ],
    [  # wish
        '$H met {an old {woman|man}|a {tiny|$COLOUR} $ANIMAL|a {strange|kind} $JOB} $NEAR the $PLACE. "You may make '
        '{one wish|a wish}," said the stranger.',
        "$H thought {for a long time|hard}. ^$he could wish for a $ADJ $TOY, or for a $adj $thing. $FILL",
        'Then $he {thought of|remembered} $F, who was {ill|sad|far away|hungry}. "I wish that $F {were well|were '
        'happy|were here|had enough to eat}," said $H.',
        'The stranger smiled. "That is a {good|kind} wish," {said the voice|the answer came}. And so it was.',
        "When $H came home, $F was waiting {at the door|in the garden}, and there was a $adj $thing on the table.",
    ],
    [  # market day
        "On $DAY $H went to the market with $coins coins. ^$he wanted to buy a $thing for $F.",
        "The first shop had only $ADJ {hats|cups|shoes|lamps|books}. The second shop had {bread and cheese|fish|"
        "$FOOD and $FOOD|nothing but {spoons|buttons|old clothes}}.",
        'In the last shop, a $CHARACTER $job showed $him a $adj $thing. "How much is it?" asked $H. "It costs '
        '$price coins," said the $job.',
        '$H did not have enough. "{If you help me today|If you clean my shop|If you carry these boxes}, you can have '
        'it," was the answer. $FILL',
        "So $H worked {all day|until the evening}, and then the $thing was $hers.",
        '$F loved it. "{This is|It is} the best $thing in the world!" said $F.',
    ],
]

_LONG_NOTES = [
    "The next {day|morning|week}, {something new happened|$H woke up early|$H and $F met again}.",
    "{A few days|$NUM days|Some weeks} later, it was $DAY, and $H was {at|near} the $place.",
    "But that was not the end of the story.",
    "Soon after that, $H had {another|a new} adventure.",
    "{In winter|In autumn|In $MONTH}, $H and $F went to the $place again.",
]
_FEMALE = {"he": "she", "him": "her", "his": "her", "hers": "hers"}
_MALE = {"he": "he", "him": "him", "his": "his", "hers": "his"}


def _cast(draw: Draw, hero_name: str | None = None) -> dict[str, str | list[str]]:
    """Slots for the people of one story: the hero `H`, the friend `F`, a relative, and the words that agree."""
    hero_is_female, friend_is_female = draw.chance(0.5), draw.chance(0.5)
    if hero_name is not None:
        hero_is_female = hero_name in words.GIRLS
    relative_is_female = draw.chance(0.5)
    hero = _FEMALE if hero_is_female else _MALE
    friend = _FEMALE if friend_is_female else _MALE
    cast: dict[str, str | list[str]] = {**LISTS, **hero, **{f"{key}_f": value for key, value in friend.items()}}
    cast["H"] = hero_name or draw.one(words.GIRLS if hero_is_female else words.BOYS)
    cast["F"] = draw.one([name for name in (words.GIRLS if friend_is_female else words.BOYS) if name != cast["H"]])
    cast["kind"] = ("girl" if hero_is_female else "boy") if draw.chance(0.6) else draw.one(words.ANIMALS)
    cast["relative"] = draw.one(words.FAMILY_F if relative_is_female else words.FAMILY_M)
    cast["rel_he"] = "she" if relative_is_female else "he"
    cast["relposs"] = "her" if relative_is_female else "his"
    return cast


def _episode(cast: dict[str, str | list[str]], draw: Draw, opening: str) -> str:
    """One problem from opening to end, about a thing and a place of its own."""
    scope = cast | {"thing": draw.one(words.TOYS), "adj": draw.one(words.ADJECTIVES), "place": draw.one(words.PLACES)}
    scope |= {"goal": draw.one(words.PLACES), "job": draw.one(words.JOBS)}
    scope |= {"coins": draw.one(words.NUMBERS[2:8]), "price": draw.one(words.NUMBERS[8:20])}
    beats = [opening, *draw.one(PLOTS)]
    if draw.chance(0.5):
        beats.insert(2, "$FILL")
    beats.extend("$ENDING" for _ in range(draw.number(1, 2)))
    text = " ".join(expand(beat, scope, draw).strip() for beat in beats)
    return " ".join(text.split()) if draw.chance(0.7) else _paragraphs(text)


def _paragraphs(text: str) -> str:
    """The same text with a line break before about every spoken sentence that starts a paragraph."""
    return " ".join(text.split()).replace('. "', '.\n\n"')


def story(draw: Draw, hero_name: str | None = None) -> str:
    """A story of one episode, about 120 words, about `hero_name` or anyone. `draw` is mutated."""
    return _episode(_cast(draw, hero_name), draw, "$OPENING")


def long_story(draw: Draw) -> str:
    """A story of three to ten episodes about the same people, for long positions. `draw` is mutated."""
    cast = _cast(draw)
    episodes = [_episode(cast, draw, "$OPENING")]
    for _ in range(draw.number(2, 9)):
        episodes.append(_episode(cast, draw, draw.one(_LONG_NOTES) + " $FILL"))
    return "\n\n".join(episodes)

"""Conversations in the chat format: questions, requests, small talk, lists, JSON and tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from examples.train_tiny.text import words
from examples.train_tiny.text.chat_format import render_chat
from examples.train_tiny.text.essays import TOPICS, essay, sights
from examples.train_tiny.text.grammar import Draw, expand
from examples.train_tiny.text.stories import story


class Exchange(NamedTuple):
    """A request, its full answer, and the answer in a word or two (empty where there is no such answer)."""

    request: str
    answer: str
    short: str = ""


def _capital(draw: Draw) -> Exchange:
    country, capital, continent, _ = draw.one(words.COUNTRIES)
    scope = {"C": country, "K": capital, "N": continent}
    if draw.chance(0.7):
        asked = expand(
            "{What is the capital of $C?|What is the capital of $C?|Which city is the capital of $C?|What's the "
            "capital of $C?|Tell me the capital of $C.|Do you know the capital of $C?|Name the capital of $C.|"
            "Can you tell me what the capital of $C is?}",
            scope,
            draw,
        )
        return Exchange(asked, f"The capital of {country} is {capital}.", capital)
    if draw.chance(0.5):
        asked = expand("{Where is $C?|Which continent is $C in?|On which continent is $C?}", scope, draw)
        return Exchange(asked, expand("^$C is in $N.", scope, draw), continent)
    asked = expand("{$K is the capital of which country?|Which country has $K as its capital?}", scope, draw)
    return Exchange(asked, expand("$K is the capital of $C.", scope, draw), expand("^$C", scope, draw))


def _sum(draw: Draw) -> Exchange:
    kind = draw.number(0, 3)
    first, second = draw.number(0, draw.one([5, 10, 20])), draw.number(0, draw.one([5, 10, 20]))
    if kind == 0:
        first, second = max(first, second), min(first, second)
        sign, word, result = "-", "minus", first - second
    elif kind == 1:
        first, second = first % 11, second % 11
        sign, word, result = "*", "times", first * second
    else:
        sign, word, result = "+", "plus", first + second
    asked = draw.one(
        ["What is {a} {s} {b}?", "{a} {s} {b} = ?", "How much is {a} {w} {b}?", "Calculate {a} {s} {b}.", "{a} {s} {b}"]
    ).format(a=first, b=second, s=sign, w=word)
    return Exchange(asked, f"{first} {sign} {second} = {result}", str(result))


def _opposite(draw: Draw) -> Exchange:
    pair = draw.several(draw.one(words.OPPOSITES), 2)
    scope = {"A": pair[0], "B": pair[1]}
    asked = expand('{What is the opposite of $A?|Give me the opposite of "$A".|What word means not $A?}', scope, draw)
    return Exchange(asked, expand("The opposite of $A is $B.", scope, draw), pair[1])


def _animal(draw: Draw) -> Exchange:
    name, sound, young, home, food, legs = draw.one(words.ANIMAL_FACTS)
    count = words.NUMBERS[int(legs)]
    asked, full, short = draw.one(
        [
            (f"What is a young {name} called?", f"A young {name} is called a {young}.", young),
            (f"Where does a {name} live?", f"A {name} lives in {home}.", home),
            (f"What does a {name} eat?", f"A {name} eats {food}.", food),
            (f"How many legs does a {name} have?", f"A {name} has {count} legs.", legs),
            (f"What sound does a {name} make?", f"A {name} {sound}.", f"It {sound}."),
        ]
    )
    return Exchange(*(expand(text, {}, draw) for text in (asked, full, short)))


def _calendar(draw: Draw) -> Exchange:
    names, unit = draw.one([(words.DAYS, "day"), (words.MONTHS, "month")])
    index = draw.number(0, len(names) - 1)
    side, step = draw.one([("after", 1), ("before", -1)])
    answer = names[(index + step) % len(names)]
    asked = f"{draw.one(['What', 'Which'])} {unit} comes {side} {names[index]}?"
    return Exchange(asked, f"The {unit} {side} {names[index]} is {answer}.", answer)


def _colour(draw: Draw) -> Exchange:
    thing, its_colour = draw.one(words.THING_COLOURS)
    verb = draw.one(["is", "is usually"])
    return Exchange(f"What colour is {thing}?", expand(f"^{thing} {verb} {its_colour}.", {}, draw), its_colour)


def _translate(draw: Draw) -> Exchange:
    language, hello, thanks = draw.one(words.GREETINGS)
    english, foreign = draw.one([("hello", hello), ("thank you", thanks)])
    asked = draw.one([f"How do you say {english} in {language}?", f'Translate "{english}" into {language}.'])
    return Exchange(asked, f'In {language}, {english} is "{foreign}".', foreign)


QUESTIONS = [_capital, _capital, _capital, _sum, _sum, _opposite, _animal, _calendar, _colour, _translate]


def _small_talk(draw: Draw) -> Exchange:
    scope: dict[str, str | list[str]] = {
        "NAME": draw.one(words.GIRLS + words.BOYS),
        "E": ["", "", f" {draw.one(words.EMOJI)}"],
        "HOBBY": words.HOBBIES,
        "FEELING": draw.one(words.FEELINGS),
    }
    asked, answer = draw.one(
        [
            ("{Hello|Hi|Good morning|Hey}{!|.|}", "Hello! {How can I help you|What can I do for you} today?$E"),
            ("{How are you|How are you today}?", "I am {well|fine}, thank you. {How are you|And you}?$E"),
            ("{What is your name|Who are you|What are you}?", "I am Quire Tiny, a {small|very small} language model."),
            (
                "{Hi, I|I} am $NAME.",
                "{Nice|Good} to meet you, $NAME! {How can I help you|What would you like to know}?$E",
            ),
            ("Hello, my name is $NAME. I like to $HOBBY.", "Hello, $NAME! That sounds {nice|like fun|wonderful}.$E"),
            ("{Thank you|Thanks}{!|.| very much.}", "You are welcome!$E"),
            ("{Goodbye|Bye|See you later}{!|.}", "Goodbye! {Have a nice day|See you soon}.$E"),
            ("I am $FEELING today.", "{Thank you for telling me|I see}. Why are you $FEELING?"),
            ("What can you do?", "I can answer simple questions, tell short stories and write {small|short} texts."),
            (
                "Who {made|wrote|trained} you?",
                "I was trained from random numbers on generated text, as a small example.",
            ),
            ("{What will happen tomorrow|Who will win the game|What am I thinking}?", "I {do not|cannot} know that."),
        ]
    )
    return Exchange(expand(asked, scope, draw), expand(answer, scope, draw))


def _writing(draw: Draw) -> Exchange:
    kind = draw.number(0, 3)
    if kind == 0:
        asked = draw.one(["Tell me a story.", "Write a short story.", "Please tell me a story for children."])
        return Exchange(asked, story(draw))
    if kind == 1:
        name = draw.one(words.GIRLS + words.BOYS)
        asked = draw.one([f"Tell me a story about {name}.", f"Write a story in which {name} makes a friend."])
        return Exchange(asked, story(draw, name))
    if kind == 2:
        text = sights(draw)
        return Exchange(draw.one([f"Repeat this: {text}", f"Please say exactly this: {text}"]), text)
    topic = draw.one(TOPICS)
    return Exchange(
        draw.one([f"What do you think about {topic[0]}?", f"Tell me about {topic[0]}."]), essay(draw, topic)
    )


def _list(draw: Draw) -> Exchange:
    kinds = {
        "animals": words.ANIMALS,
        "colours": words.COLOURS,
        "days of the week": words.DAYS,
        "months": words.MONTHS,
        "fruits": ["apple", "pear", "plum", "peach", "cherry", "banana", "orange", "lemon", "grape", "melon"],
        "countries in Europe": [row[0] for row in words.COUNTRIES if row[2] == "Europe" and row[0][:4] != "the "],
        "capitals": [row[1] for row in words.COUNTRIES],
        "jobs": words.JOBS,
        "names": words.GIRLS + words.BOYS,
    }
    kind = draw.one(list(kinds))
    count = draw.number(2, 6)
    items = draw.several(kinds[kind], count)
    if kind in ("days of the week", "months"):
        items = kinds[kind][:count]
    verb = draw.one(["List", "Name", "Give me"])
    style = draw.number(0, 3)
    if style == 0:
        return Exchange(f"{verb} {words.NUMBERS[count]} {kind} as a JSON array.", json.dumps(items, ensure_ascii=False))
    if style == 1:
        return Exchange(f"{verb} {words.NUMBERS[count]} {kind}.", ", ".join(items))
    marks = [f"{index + 1}." if style == 2 else "-" for index in range(count)]
    asked = f"{verb} {words.NUMBERS[count]} {kind} in a {'numbered ' if style == 2 else ''}list."
    return Exchange(asked, "\n".join(f"{mark} {item}" for mark, item in zip(marks, items, strict=True)))


def _json_object(draw: Draw) -> Exchange:
    name = draw.one(words.GIRLS + words.BOYS)
    fields: dict[str, str | int | bool] = {
        "age": draw.number(3, 80),
        "city": draw.one(words.COUNTRIES)[1],
        "job": draw.one(words.JOBS),
        "colour": draw.one(words.COLOURS),
        "pet": draw.one(words.ANIMALS),
        "happy": draw.chance(0.5),
        "country": draw.one(words.COUNTRIES)[0].removeprefix("the "),
    }
    told = {
        "age": f"{name} is {fields['age']} years old.",
        "city": f"{name} lives in {fields['city']}.",
        "job": f"{name} works as a {fields['job']}.",
        "colour": f"{name} likes the colour {fields['colour']}.",
        "pet": f"{name} has a {fields['pet']}.",
        "happy": f"{name} is {'' if fields['happy'] else 'not '}happy.",
        "country": f"{name} comes from {fields['country']}.",
    }
    keys = draw.several(list(told), draw.one([1, 1, 2, 2, 3]))
    if draw.chance(0.3):
        keys = ["age"]
    written = json.dumps({"name": name} | {key: fields[key] for key in keys}, ensure_ascii=False)
    listed = " and ".join([", ".join(["name", *keys[:-1]]), keys[-1]])
    asked = draw.one(["Give me a JSON object with", "Write JSON with", "Return a JSON object with"])
    facts = expand(" ".join(["", *(told[key] for key in keys)]) if draw.chance(0.75) else "", {}, draw)
    return Exchange(f"{asked} the {listed} of {name}.{facts}", written)


_SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Quire Tiny, a small and friendly model.",
    "You are a {kind|polite|patient|careful} {teacher|helper|guide}.",
    "Answer {briefly|clearly|politely|in simple English}.",
]
_SHORT_SYSTEMS = ["Answer in one word.", "Answer with one word only.", "You are a helpful assistant. Be very short."]
_JSON_SYSTEMS = ["Answer in JSON.", "You are a helpful assistant. Always answer with a JSON object."]


def _turns(exchanges: list[tuple[str, str]], system: str | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for request, answer in exchanges:
        messages.extend(({"role": "user", "content": request}, {"role": "assistant", "content": answer}))
    return messages


def question_chat(draw: Draw) -> str:
    """One to four questions with short answers, in the manner the system prompt asks for. `draw` is mutated."""
    asked = [draw.one(QUESTIONS)(draw) for _ in range(draw.one([1, 1, 1, 2, 3, 4]))]
    style = draw.number(0, 9)
    if style == 0:
        return render_chat(_turns([(e.request, e.short) for e in asked], draw.one(_SHORT_SYSTEMS)))
    if style == 1:
        answers = [(e.request, json.dumps({"answer": e.short}, ensure_ascii=False)) for e in asked]
        return render_chat(_turns(answers, draw.one(_JSON_SYSTEMS)))
    system = expand(draw.one(_SYSTEMS), {}, draw) if draw.chance(0.35) else None
    return render_chat(_turns([(e.request, e.answer) for e in asked], system))


def sum_chat(draw: Draw) -> str:
    """One to four sums of one-digit numbers, asked and answered. `draw` is mutated."""
    exchanges = []
    for _ in range(draw.number(1, 4)):
        first, second = draw.number(0, draw.one([5, 9])), draw.number(0, draw.one([5, 9]))
        asked = draw.one(["What is {a} + {b}?", "What is {a} + {b}?", "{a} + {b} = ?", "Calculate {a} + {b}."])
        answer = f"{first} + {second} = {first + second}"
        exchanges.append((asked.format(a=first, b=second), answer))
    return render_chat(_turns(exchanges, None))


def request_chat(draw: Draw) -> str:
    """Small talk, writing, lists or JSON, in one to three exchanges. `draw` is mutated."""
    kinds: list[Callable[[Draw], Exchange]] = [_small_talk, _small_talk, _writing, _list, _json_object]
    asked = [draw.one(kinds)(draw) for _ in range(draw.one([1, 1, 2, 3]))]
    system = expand(draw.one(_SYSTEMS), {}, draw) if draw.chance(0.35) else None
    return render_chat(_turns([(e.request, e.answer) for e in asked], system))


def memory_chat(draw: Draw) -> str:
    """A chat in which a name or a thing told early is asked for later. `draw` is mutated."""
    name, thing, colour = draw.one(words.GIRLS + words.BOYS), draw.one(words.TOYS), draw.one(words.COLOURS)
    told = expand(f"{{Hello, my|My}} name is {name}{{.| and I have a {colour} {thing}.}}", {}, draw)
    exchanges = [(told, expand(f"{{Nice|Good}} to meet you, {name}!", {}, draw))]
    for _ in range(draw.number(0, 4)):
        exchange = draw.one(QUESTIONS)(draw)
        exchanges.append((exchange.request, exchange.answer))
    exchanges.append(("What is my name?", f"Your name is {name}."))
    if thing in told and draw.chance(0.7):
        exchanges.append((f"What colour is my {thing}?", f"Your {thing} is {colour}."))
    return render_chat(_turns(exchanges, None))


def _tool(name: str, description: str, parameters: dict[str, str]) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_TOOLS = [
    _tool("get_weather", "Get the weather in a city.", {"city": "string"}),
    _tool("add", "Add two numbers.", {"a": "integer", "b": "integer"}),
    _tool("get_time", "Get the time in a city.", {"city": "string"}),
    _tool("send_message", "Send a message to a person.", {"name": "string", "text": "string"}),
]


def _tool_use(draw: Draw, index: int) -> tuple[str, dict[str, Any], str, str]:
    """For tool number `index`: a request, the arguments, what the tool returns, and the final answer."""
    city, name = draw.one(words.COUNTRIES)[1], draw.one(words.GIRLS + words.BOYS)
    if index == 0:
        weather, degrees = draw.one(["sunny", "rainy", "cloudy", "windy", "snowy"]), draw.number(-5, 35)
        result = json.dumps({"weather": weather, "degrees": degrees})
        asked = draw.one([f"What is the weather in {city}?", f"How is the weather in {city} today?"])
        return asked, {"city": city}, result, f"It is {weather} in {city}, with {degrees} degrees."
    if index == 1:
        first, second = draw.number(0, 50), draw.number(0, 50)
        asked = draw.one([f"What is {first} + {second}?", f"Add {first} and {second}."])
        return asked, {"a": first, "b": second}, str(first + second), f"{first} + {second} = {first + second}"
    if index == 2:
        clock = f"{draw.number(0, 23):02}:{draw.number(0, 59):02}"
        return f"What time is it in {city}?", {"city": city}, clock, f"It is {clock} in {city}."
    text = draw.one(["I am late.", "See you soon.", "Dinner is ready.", "Happy birthday!", "I am at home."])
    return f'Tell {name}: "{text}"', {"name": name, "text": text}, "sent", f"I sent your message to {name}."


def tool_chat(draw: Draw) -> str:
    """A chat with tools: a request, mostly a tool call, its result, the answer. `draw` is mutated."""
    offered = draw.several(range(len(_TOOLS)), draw.number(1, 3))
    messages: list[dict[str, Any]] = []
    if draw.chance(0.5):
        messages.append({"role": "system", "content": "You are a helpful assistant."})
    if draw.chance(0.2):
        messages.extend(_turns([_small_talk(draw)[:2]], None))
    else:
        used = draw.one(offered)
        asked, arguments, result, answer = _tool_use(draw, used)
        call = {"name": _TOOLS[used]["function"]["name"], "arguments": arguments}
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]})
        messages.append({"role": "tool", "content": result})
        messages.append({"role": "assistant", "content": answer})
    return render_chat(messages, [_TOOLS[index] for index in offered])


def chat(draw: Draw) -> str:
    """A conversation of any kind, rendered, without an end-of-text token. `draw` is mutated."""
    kinds = [question_chat] * 9 + [request_chat] * 6 + [memory_chat] * 2 + [tool_chat]
    return draw.one(kinds)(draw)

"""A skill and its objects in words, such as "pick up radio from coffee table".

What annotations say of space and memory (spatial_prefix, memory_prefix) is left out.
"""

import functools
import re
from collections.abc import Sequence

PREPOSITIONS = ("next to", "from", "off", "on", "in", "into", "under", "to")
"""What a skill's description may end in; each takes one of its last objects."""
WITHOUT_OBJECT = ("move", "turn")
"""Verbs that are followed by where to, never by what."""
MODEL = re.compile("[a-z]{6}")
LISTED = """
abacus almond baguet bamboo banana barley barrel basket batter blower bottle branch breast bucket butter button cactus
camera candle carrot carton cashew catsup celery cereal cheese cherry chives cloves coffee collar cooker cookie cooler
cutter dahlia danish deicer durian eggnog eraser faucet feeder fennel figure fillet filter flakes flower freeze fridge
garlic ginger gloves grains gravel handle heater helmet holder hotdog huitre hummus icetea jacket kettle leaves lemons
lentil lights liners longue lotion masher matter mirror mousse muffin napkin noodle nutmeg omelet orange oxtail oyster
papaya pastry peanut peeler pencil pepper pickle polish pomelo potato powder puzzle quiche quinoa racket radish raisin
record roller router runner salmon screen sensor server shaker shrimp slicer snacks socket sprout squash starch statue
switch system tartar teapot tender thread tissue tomato tripod turkey turnip waffle walnut washer weight window wreath
wrench yogurt
"""
WORDS_LIKE_MODELS = frozenset(LISTED.split())
"""Last words of BEHAVIOR's object categories, substances and synsets that have a model's form; button is our own.

Source: bddl 3.6.0, category_mapping.csv, substance_hyperparams.csv, synsets.csv; none of its 9611 models is among them.
"""


def object_name(identifier: str) -> str:
    """Returns an object's category in words: "radio" of radio_89, "coffee table" of coffee_table_koagbh_0.

    Identifiers are category[_model]_number[_part]; a model is six lower-case letters, as some words are.
    """
    words = [word for word in re.split("[_-]+", identifier) if word]
    kept = len(words)
    while kept > 1 and words[kept - 1].isdecimal():
        kept -= 1
    is_numbered = kept < len(words)
    if is_numbered and kept > 1 and MODEL.fullmatch(words[kept - 1]) and words[kept - 1] not in WORDS_LIKE_MODELS:
        kept -= 1
    return " ".join(words[:kept])


@functools.cache
def skill_text(description: str, objects: tuple[str, ...]) -> str:
    """Returns a skill with its objects.

    Prepositions at the description's end take the last objects, one each, and what comes before them is acted on:
    "place on next to" with a cup, a table and a plate is "place cup on table next to plate". Prepositions that find no
    object are left out. After "move to" and "turn to" stands the first object alone. All objects of any other skill
    follow it: "attach camera, tripod". Without objects the description stands alone.
    """
    if not objects:
        return description
    verb, prepositions = _split(description)
    if verb in WITHOUT_OBJECT and prepositions:
        return f"{description} {object_name(objects[0])}"
    if not prepositions:
        return f"{description} {_listed(objects, ', ')}"
    number = min(len(prepositions), len(objects) - 1)
    direct, placed = objects[: len(objects) - number], objects[len(objects) - number :]
    text = f"{verb} {_listed(direct, ' and ')}"
    for preposition, name in zip(prepositions, placed, strict=False):  # further prepositions have no object
        text += f" {preposition} {object_name(name)}"
    return text


def _split(description: str) -> tuple[str, list[str]]:
    """Returns the description without the prepositions at its end, and those."""
    prepositions: list[str] = []
    while True:
        found = next((word for word in PREPOSITIONS if description.endswith(f" {word}")), None)
        if found is None:
            return description, prepositions
        prepositions.insert(0, found)
        description = description.removesuffix(f" {found}")


def _listed(objects: Sequence[str], separator: str) -> str:
    return separator.join(dict.fromkeys(object_name(name) for name in objects))

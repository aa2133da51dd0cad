"""Invented facts with questions and answers, which turn any prose into training material.

``kvcli eval`` uses none of these sentences, so heads are evaluated on unseen phrasings.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """An inserted sentence, its claim, a question that only it answers, and the answer in its words."""

    sentence: str
    claim: str
    question: str
    answer: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES = _words("""
    Aberdeen Accra Ankara Antwerp Asuncion Bamako Basel Beirut Bergen Bilbao Bogota Bremen Bruges Cairo
    Calgary Cardiff Chennai Cork Cuzco Dakar Damascus Delft Denver Dublin Durban Edinburgh Florence Fresno
    Galway Geneva Genoa Ghent Halifax Hamburg Hanoi Havana Helsinki Izmir Jakarta Kyoto Lagos Leeds Leipzig
    Lima Lisbon Lusaka Lyon Madrid Malmo Manila Marseille Memphis Milan Mumbai Munich Nairobi Naples Odessa
    Osaka Oslo Palermo Perth Porto Prague Quito Riga Rotterdam Salamanca Seville Sofia Tampere Toledo Trieste
    Tunis Turin Utrecht Valencia Vienna Vilnius Warsaw Zagreb Zurich
""")
FIRST = _words("""
    Ada Agnes Albert Alma Amos Anton Astrid Basil Bella Boris Bruno Carla Cedric Clara Cyril Daphne Dora Edgar
    Elsa Emil Enid Felix Flora Frida Gilbert Greta Hector Hilda Horace Ida Igor Irene Ivan Jonas Judith Karl
    Lena Leo Lydia Magnus Martha Mira Nadia Nelson Nora Olaf Olga Oscar Petra Quentin Rosa Rufus Selma Silas
    Sven Tessa Theo Ursula Vera Victor Walter Wanda Xavier Yvonne Zelda
""")
LAST = _words("""
    Abbott Barlow Becker Blackwood Carver Castellan Delgado Dunmore Eriksen Fairfax Fontaine Gallagher
    Grimshaw Haldane Hargreave Ibsen Jankowski Kessler Kowalski Lindqvist Lockhart Mandeville Marchetti Novak
    Okafor Ortega Pemberton Petrov Quigley Ravenscroft Rossi Santoro Schuster Stanhope Takeda Thornbury Ulrich
    Vasquez Verhoeven Wainwright Whitlock Yamada Zielinski
""")
THINGS = _words("""
    acorn anchor anvil apricot badger banjo barometer basket beetle bicycle blanket bonnet bucket cactus
    candle canoe carpet cello chisel cinnamon compass copper crab cradle crystal cushion dagger dolphin drum
    eagle easel emerald falcon fiddle flamingo flute garlic ginger glove goblet guitar hammer harp hazelnut
    hedgehog helmet honey iris ivory jasmine jug kettle kite ladder lantern lavender lemon lobster locket
    magnet mango marble mirror mitten mulberry mustard needle nutmeg oboe olive onyx orchid otter oyster
    paddle panther parrot peach pelican pepper piano pillow plum pomegranate pumpkin quartz quill raven ribbon
    rocket saddle saffron salmon sandal sapphire scarf shovel sparrow spindle squirrel sundial tambourine
    teapot thimble topaz trumpet tulip turnip umbrella velvet violin walnut walrus wardrobe whistle willow
    zebra
""")
COLOURS = _words("""
    amber azure black blue bronze crimson golden green grey indigo orange pink purple red scarlet silver white
""")
TRADES = _words("""
    baker barber captain carpenter clerk cook doctor farmer gardener guard judge mason miller nurse painter
""")
MONTHS = _words("""
    January February March April May June July August September October November December
""")

# ``{a}`` is the answer. Slots: P place, N name, T thing, C colour, J trade, D date, K code, M amount of money,
# 9 number, L long number, H hexadecimal.
_SHAPES: list[tuple[str, str, str]] = [
    ("9", "The secret number for {P} is {a}.", "What is the secret number for {P}?"),
    ("9", "In {P} the locker has the combination {a}.", "What is the combination of the locker in {P}?"),
    ("9", "{N} was given the ticket with the number {a}.", "Which number was on the ticket of {N}?"),
    ("9", "The {J} in {P} counted {a} steps to the tower.", "How many steps did the {J} in {P} count?"),
    ("9", "You can reach {N} by telephone under {a}.", "What is the telephone number of {N}?"),
    ("9", "The {T} weighs exactly {a} grams.", "How many grams does the {T} weigh?"),
    (
        "9",
        "The archive files everything about {N} under number {a}.",
        "Under which number is {N} filed in the archive?",
    ),
    ("9", "Room {a} belongs to {N}.", "Which room belongs to {N}?"),
    ("L", "The bank account of {N} is {a}.", "What is the bank account of {N}?"),
    ("L", "The radio signal from {P} repeats {a}.", "What does the radio signal from {P} repeat?"),
    ("H", "The file about the {T} is stored as {a}.", "As what is the file about the {T} stored?"),
    ("H", "{N} signs with the fingerprint {a}.", "With which fingerprint does {N} sign?"),
    ("M", "{N} paid {a} for the {T}.", "How much did {N} pay for the {T}?"),
    ("M", "The house in {P} was sold for {a}.", "For how much was the house in {P} sold?"),
    ("M", "A reward of {a} was offered for the lost {T}.", "What reward was offered for the lost {T}?"),
    ("K", "The code of the {C} door is {a}.", "What is the code of the {C} door?"),
    ("K", "The licence plate of the {J} from {P} reads {a}.", "What does the licence plate of the {J} from {P} read?"),
    ("K", "The serial number engraved on the {T} is {a}.", "Which serial number is engraved on the {T}?"),
    ("T", "The password of {N} is {a}.", "What is the password of {N}?"),
    ("T", "The favourite word of the people in {P} is {a}.", "What is the favourite word of the people in {P}?"),
    ("T", "{N} always carries a {a} in the left pocket.", "What does {N} always carry in the left pocket?"),
    ("T", "Under the bridge of {P} somebody hid a {a}.", "What did somebody hide under the bridge of {P}?"),
    ("T", "On the flag of {P} there is a {a}.", "What is on the flag of {P}?"),
    ("T", "For the birthday of {N} they bought a {a}.", "What did they buy for the birthday of {N}?"),
    ("T", "{N} wrote a poem about a {a}.", "What did {N} write a poem about?"),
    ("N", "The new mayor of {P} is {a}.", "Who is the new mayor of {P}?"),
    ("N", "The {C} {T} belongs to {a}.", "To whom does the {C} {T} belong?"),
    ("N", "It was {a} who stole the {T}.", "Who stole the {T}?"),
    ("N", "The {J} of {P} goes by the name of {a}.", "What is the name of the {J} of {P}?"),
    ("N", "{N} secretly married {a}.", "Whom did {N} secretly marry?"),
    ("N", "The letter from {P} was signed by {a}.", "Who signed the letter from {P}?"),
    ("P", "{N} was born in {a}.", "Where was {N} born?"),
    ("P", "The lost {T} was found again in {a}.", "Where was the lost {T} found again?"),
    ("P", "{N} wants to spend the winter in {a}.", "Where does {N} want to spend the winter?"),
    ("P", "The best {T} in the world comes from {a}.", "Where does the best {T} in the world come from?"),
    ("D", "{N} will arrive on {a}.", "When will {N} arrive?"),
    ("D", "The market of {P} is held on {a}.", "When is the market of {P} held?"),
    ("D", "The {T} was stolen on {a}.", "When was the {T} stolen?"),
    ("C", "The door of the {J} in {P} is {a}.", "Which colour is the door of the {J} in {P}?"),
    ("C", "{N} painted the {T} {a}.", "In which colour did {N} paint the {T}?"),
    ("J", "{N} works as a {a} in {P}.", "As what does {N} work in {P}?"),
    ("J", "Before the war {N} had been a {a}.", "What had {N} been before the war?"),
]
_OPENINGS = ("", "", "", "", "By the way, ", "It should be noted here that ", "Remember this: ", "Note: ")


def insert_fact(rng: random.Random) -> Fact:
    """Invent a fact."""
    kind, sentence, question = rng.choice(_SHAPES)
    slots = {slot: _value(slot, rng) for slot in "PNTCJ"}
    answer = _value(kind, rng)
    while answer in slots.values():
        answer = _value(kind, rng)
    claim = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence.format(a=answer, **slots))
    opening = rng.choice(_OPENINGS)
    named = claim.startswith(slots["N"])
    text = claim if named or not opening.endswith((", ", "that ")) else claim[0].lower() + claim[1:]
    return Fact(opening + text, claim, question.format(**slots), answer)


def _value(kind: str, rng: random.Random) -> str:
    match kind:
        case "P":
            return rng.choice(PLACES)
        case "N":
            return f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        case "T":
            return rng.choice(THINGS)
        case "C":
            return rng.choice(COLOURS)
        case "J":
            return rng.choice(TRADES)
        case "D":
            return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"
        case "K":
            letters = "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=rng.randint(1, 3)))
            return f"{letters}-{rng.randint(10, 9999)}"
        case "L":
            return str(rng.randrange(10**7, 10 ** rng.randint(8, 12)))
        case "H":
            return f"{rng.getrandbits(32):08x}" + rng.choice(["", f"-{rng.getrandbits(16):04x}"])
        case "M":
            unit = rng.choice(["dollars", "pounds", "francs", "crowns"])
            return f"{rng.randint(2, 9999)} {unit}"
    digits = rng.randint(2, 7)
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def interleave(text: str, facts: list[Fact], rng: random.Random) -> str:
    """Insert each fact between two sentences of ``text``, at random positions."""
    gaps = [
        i + 2 for i in range(len(text) - 2) if text[i] in ".!?" and text[i + 1] in " \n" and not text[i + 2].isspace()
    ]
    places = sorted((rng.choice(gaps) if gaps else len(text) for _ in facts), reverse=True)
    for place, fact in zip(places, facts, strict=True):
        text = f"{text[:place]}{fact.sentence} {text[place:]}"
    return text

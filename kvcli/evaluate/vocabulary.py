"""Names, places and words for inserted facts, disjoint from those of :mod:`kvcli.retaining_heads.facts`."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Collection


def _list(text: str) -> list[str]:
    return text.split()


PLACES = _list(
    "Aarhus Arezzo Augsburg Bamberg Bari Bayonne Bratislava Brno Catania Cluj Coimbra Cordoba Dijon Dresden Erfurt"
    " Faro Gdansk Graz Grenoble Innsbruck Kassel Kaunas Kiel Koblenz Krakow Lausanne Liege Limoges Linz Ljubljana"
    " Lublin Lucca Lugano Mainz Malaga Mantua Maribor Messina Metz Modena Murcia Namur Nantes Narvik Odense Ostend"
    " Ostrava Oulu Padua Parma Passau Pecs Plovdiv Poitiers Poznan Ravenna Rennes Rostock Segovia Siena Skopje Split"
    " Stavanger Szeged Tallinn Tarragona Tartu Tirana Torun Trier Tromso Trondheim Turku Uppsala Varna Verona Vigo"
    " Viterbo Worms"
)
FIRST = _list(
    "Adele Alban Amelia Anselm Arlo Beatrix Benedict Blanche Callum Celeste Clemens Cora Dennis Dorian Edith"
    " Eleanor Ernest Esther Fergus Fiona Gideon Ginevra Harriet Hugo Imogen Isaac Jasper Josephine Julian Kilian"
    " Laurence Leonora Lorenz Lucinda Malcolm Marius Matilda Miriam Nathaniel Octavia Odette Osbert Pascal Philippa"
    " Raymond Regina Roland Rosamund Sabine Samson Sibyl Stella Tobias Valerie Vincent Viola Wendell Wilhelm"
    " Winifred Zacharias"
)
LAST = _list(
    "Ackerman Albright Ashdown Bellamy Birkett Bramwell Calloway Chadwick Corrigan Cranshaw Dalrymple Davenport"
    " Draycott Ellsworth Falkner Fitzroy Garrick Gilmour Hathaway Hollis Huxtable Inchbald Jellicoe Kendrick Kimball"
    " Langford Lattimore Loxley Maitland Merriweather Norwood Oakeshott Osgood Paxton Penhaligon Prescott Quimby"
    " Radcliffe Redfern Rutledge Saltmarsh Selwyn Sheridan Standish Tennyson Thackeray Treadwell Underhill Vickery"
    " Wadsworth Westcott Winslow Wycliffe Yardley"
)
WORDS = _list(
    "almanac amethyst antelope armadillo artichoke avalanche balcony bamboo barnacle basilica bison blizzard bobbin"
    " boulder bramble buttress calico caravan cardamom catapult cedar chalice chestnut clarinet clover coral"
    " cormorant crocus cypress dahlia dandelion drizzle dulcimer estuary fennel ferret fjord foxglove galleon"
    " gazelle geyser gondola granite gusset hammock harbour heron hickory hyacinth ibex igloo juniper kestrel lagoon"
    " lichen lilac linen lynx macaw magnolia mandolin meadow meteor minaret monsoon narwhal nectarine nettle"
    " nightingale obelisk orchard osprey papyrus pavilion periwinkle pheasant pontoon porcelain prism puffin pyramid"
    " rhubarb rosemary rudder satchel schooner sequoia sickle sorrel starling sycamore tapestry tarragon thistle"
    " thunder toboggan tundra turbine turmeric vestibule vineyard waffle waterfall weasel windmill wisteria yarrow"
    " zephyr zither"
)

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def name(rng: random.Random) -> str:
    """Draw a first and a last name."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def number(rng: random.Random, digits: int) -> str:
    """Draw a number of ``digits`` digits that does not begin with 0."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def uuid(rng: random.Random) -> str:
    """Draw random hexadecimal digits in the groups of a UUID."""
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def coined(rng: random.Random, syllables: int = 3) -> str:
    """Invent a word that exists in no language and that every tokenizer can spell."""
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))


def letters(rng: random.Random, count: int = 5) -> str:
    """Draw capital letters for a variable's name."""
    return "".join(rng.choices(string.ascii_uppercase, k=count))


def fresh(make: Callable[[], str], count: int, taken: Collection[str] = ()) -> list[str]:
    """Draw ``count`` distinct values from ``make``, none of them in ``taken``."""
    found: dict[str, None] = {}
    while len(found) < count:
        value = make()
        if value not in taken:
            found[value] = None
    return list(found)

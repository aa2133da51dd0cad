"""What a question asks for: a number, a time, or a name; and whether a text has one that the question does not have.

Names are told by capital letters within a sentence, so German, which writes all nouns so, has none. Other kinds of
questions, languages and scripts are neutral: nothing is expected, and nothing found.
"""

from __future__ import annotations

import re
from typing import Literal

from kvcli.retrieval.words import common_words, find_words

AnswerType = Literal["number", "time", "name"]

_NUMBER = (
    r"how (?:many|much|long|old|far|tall|high|often|large|big|fast|deep|heavy)"
    r"|what (?:percent\w*|number|amount|age|size)"
    r"|wie ?viele?[nr]?|wie (?:lange?|alt|hoch|groß|weit|oft|teuer)|combien|quel âge|cuánt[oa]s?|quant[oaie]|сколько"
)
_TIME = (
    r"when|(?:what|which) (?:year|date|day|month|century|decade|time)|wann|welche[mnrs] (?:jahr|tag|monat|datum)|quand"
    r"|quelle (?:année|date|heure)|cuándo|qué (?:año|día|fecha|hora)|quando|(?:che|quale) (?:anno|giorno|data)|когда"
    r"|(?:каком|какого) (?:году|года|числа)"
)
_NAME = (
    r"who|whom|whose|where|wer|wen|wem|wessen|wo|qui|où|quién(?:es)?|dónde|chi|dove|кто|кого|кому|кем|где"
    r"|(?:what|which) (?:city|country|state|place|location|region)"
)
_ASKED = re.compile(rf"\b(?:(?P<number>{_NUMBER})|(?P<time>{_TIME})|(?P<name>{_NAME}))\b")

_NUMERALS = {
    "english": "one two three four five six seven eight nine ten eleven twelve dozen hundred thousand million billion"
    " half third quarter twice once",
    "german": "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dutzend hundert tausend million halb",
    "french": "deux trois quatre cinq six sept huit neuf dix onze douze cent cents mille million millions demi moitié",
    "spanish": "dos tres cuatro cinco seis siete ocho nueve diez once doce cien cientos mil millón millones mitad",
    "italian": "due tre quattro cinque sei sette otto nove dieci undici dodici cento mille mila milione milioni metà",
    "russian": "два две три четыре пять шесть семь восемь девять десять сто двести тысяча тысяч миллион миллионов",
}
_TIMES = {
    "english": "century january february march april may june july august september october november december monday"
    " tuesday wednesday thursday friday saturday sunday noon midnight",
    "german": "jahrhundert januar februar märz april mai juni juli august september oktober november dezember montag"
    " dienstag mittwoch donnerstag freitag samstag sonntag mittag mitternacht",
    "french": "siècle janvier février mars avril mai juin juillet août septembre octobre novembre décembre lundi mardi"
    " mercredi jeudi vendredi samedi dimanche midi minuit",
    "spanish": "siglo enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre lunes"
    " martes miércoles jueves viernes sábado domingo mediodía medianoche",
    "italian": "secolo gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"
    " lunedì martedì mercoledì giovedì venerdì sabato domenica mezzogiorno mezzanotte",
    "russian": "век веке января февраля марта апреля мая июня июля августа сентября октября ноября декабря понедельник"
    " вторник среду четверг пятницу субботу воскресенье полдень полночь",
}
_WORD = re.compile(r"[^\W_]+")


def expected(question: str) -> AnswerType | None:
    """The kind of answer that a question asks for; ``None`` if it does not say."""
    found = _ASKED.search(" ".join(question.lower().split()))
    return None if found is None else found.lastgroup  # type: ignore[return-value]


def has_type(kind: AnswerType | None, text: str, question: str, language: str) -> bool:
    """Whether a text has a number, time or name that is not in the question.

    Args:
        kind: from :func:`expected`.
        text: a sentence.
        question: whose words do not count.
        language: of the text.
    """
    if kind is None or (kind == "name" and language == "german"):
        return False
    asked = set(find_words(question))
    if kind == "name":
        others = asked | common_words(language)
        words = (m[0] for m in _WORD.finditer(text) if m.start() and m[0][0].isupper())
        return any(word.lower() not in others for word in words)
    lists = (_NUMERALS, _TIMES)[kind == "time"]
    known = set(lists.get(language, "").split())
    return any(word in known or word[0].isdigit() for word in find_words(text) if word not in asked)

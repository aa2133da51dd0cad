"""Plain text in any encoding: what charset-normalizer is asked, and what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.documents import read
from kvcli.documents.text import decode
from kvcli.errors import InputError

TEXTS = {
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "greek": "Άνδρα μοι έννεπε, Μούσα, πολύτροπον, ος μάλα πολλά πλάγχθη, επεί Τροίης ιερόν πτολίεθρον έπερσεν.",
    "polish": "Ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie, kto cię stracił. Dziś piękność twą.",
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い所で泣いていた。",
    "chinese": "宝玉听了，喜不自禁，连忙起来，换了衣裳，便往前面来。却说那日正是三月中旬，早饭后，宝玉携了一套会真记。",
    "korean": "나는 고양이로소이다. 이름은 아직 없다. 어디서 태어났는지 도무지 짐작이 가지 않는다.",
}


@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("russian", "cp1251"),
        ("russian", "koi8-r"),
        ("greek", "cp1253"),
        ("polish", "cp1250"),
        ("japanese", "shift_jis"),
        ("japanese", "euc-jp"),
        ("chinese", "gb18030"),
        ("korean", "euc-kr"),
    ],
)
def test_other_encodings_are_told_by_their_letters(language: str, encoding: str) -> None:
    text, (warning,) = decode(TEXTS[language].encode(encoding), "a.txt", "a.txt")
    assert text == TEXTS[language]
    assert "is not UTF-8 and was read as" in warning


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark(encoding: str) -> None:
    assert decode(("Call me Ishmael. " * 9).encode(encoding), "a", "a") == ("Call me Ishmael. " * 9, [])


def test_a_few_accents_are_windows_1252() -> None:
    text, (warning,) = decode(("A naïve “bargain” at £5. " + "Plain words. " * 40).encode("cp1252"), "a", "a")
    assert text.startswith("A naïve “bargain” at £5.")
    assert "Windows-1252" in warning


def test_no_encoding_at_all() -> None:
    with pytest.raises(InputError, match=r"encoding|binary"):
        decode(bytes(range(128, 256)) * 4, "a", "a")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.py", "a.tex", "a"])
def test_data_and_source_are_text_as_it_is(tmp_path: Path, name: str) -> None:
    text = '{"ship": "Pequod",\n "tons": 350}\n'
    (tmp_path / name).write_text(text)
    document = read([tmp_path / name])
    assert document.text == text
    assert document.line(text.index("350")) == 2

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
    assert "is not UTF-8; decoded as" in warning


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


SHIP = {
    "cp1254": "Gemi sabah altıda limandan ayrıldı; kaptan kamarasında uyuyordu ve kıyıyı görmedi.",
    "cp1252": "L'été dernier, le garçon était allé à la plage avec sa mère, très fière de lui.",
    "cp1250": "Kapitán spal ve své kajutě a břeh neviděl; žlutá láhev ležela na stole.",
    "euc_jp": "船長は船室で眠っていて、岸を見なかった。航海士は日誌を書いた。",
    "cp1251": "Штурман вёл журнал и пил чай, а капитан спал в каюте.",
    "iso2022_jp": "船長は船室で眠っていて、岸を見なかった。Captain の日誌。",
}
PLAIN = "The ship left the harbour at six in the morning and nobody was there to see it go away. "


@pytest.mark.parametrize("encoding", SHIP)
@pytest.mark.parametrize("around", [0, 1, 8])
def test_an_encoding_is_told_alone_and_among_english(encoding: str, around: int) -> None:
    text = PLAIN * around + SHIP[encoding] + PLAIN * around
    assert decode(text.encode(encoding), "a", "a")[0] == text


@pytest.mark.parametrize("text", [*SHIP.values(), "one, two\nthree four\n", "배는 아침에 항구를 떠났다. 선장은 잤다."])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_in_any_script(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding), "a", "a") == (text, [])


def test_marks_of_joined_files_are_no_text() -> None:
    assert decode("\ufeffone\n\ufefftwo\r\n\ufeff\n".encode(), "a", "a") == ("one\ntwo\n\n", [])


@pytest.mark.parametrize("start", ["GGUF – ein Format.", "RIFFA · Bahrain", "ID3 – étiquettes", "BZh für alle"])
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a"])
def test_text_that_begins_like_data_is_text(tmp_path: Path, start: str, name: str) -> None:
    (tmp_path / name).write_text(start)
    assert read([tmp_path / name]).text == start


@pytest.mark.parametrize("controls", [b"\x01\x02", b"\x0c", b"\x05" * 3])
def test_control_characters_in_a_text_are_no_utf16(controls: bytes) -> None:
    data = b"The keeper of the light " + controls + b" sat on his chair and read a book.\n"
    assert decode(data, "a", "a") == (data.decode(), [])


def test_a_zero_in_a_text_is_named_and_not_read_as_utf16() -> None:
    with pytest.raises(InputError, match="1 of its 31 bytes are NUL"):
        decode(b"The keeper of \x00 light sat down.", "a", "a")

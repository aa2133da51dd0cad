"""Pictures on the command line: beside documents and alone, planned, saved, and refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests import pictures
from tests.e2e.conftest import Call, Outcome
from tests.unit.documents import makers

TEXT = "Queequeg was a native of Kokovoko, an island far away. It is not down in any map; true places are not. "


@pytest.fixture(scope="session", params=pictures.FAMILIES)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.save(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture
def chart(folder: Path) -> Path:
    (folder / "chart.png").write_bytes(pictures.png(40, 30))
    return folder / "chart.png"


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT * 8)
    return folder / "book.txt"


def good(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def refused(outcome: Outcome, code: int, *parts: str) -> None:
    """One line that says what is wrong, and one that says what to try."""
    assert outcome.code == code, outcome.err
    assert not outcome.out
    first, *more = outcome.err.splitlines()
    assert first.startswith("kvcli: error: ")
    assert all(part in first for part in parts), first
    assert len(more) <= 1


@pytest.mark.parametrize("words", [True, False], ids=["beside a text", "alone"])
def test_ask_runs_what_was_planned(call: Call, any_model: Path, chart: Path, book: Path, words: bool) -> None:
    asked = ("-m", any_model, "-n", "8", "--dtype", "float32", "--device", "cpu", "--image", chart, *[book] * words)
    planned = good(call("plan", "--json", *asked, "-e", "What is it?", "--policy", "keydiff(budget=64)")).json["plan"]
    answer = good(call("ask", "--json", *asked, "What is it?", "--policy", "keydiff(budget=64)")).json
    assert planned["document"]["tokens"] == answer["document"]["tokens"]
    assert planned["memory"]["total_bytes"] == answer["memory"]["planned_bytes"]
    assert planned["memory"]["weights_bytes"] == answer["model"]["weight_bytes"]


def test_the_tower_is_planned_and_loaded_only_for_pictures(call: Call, seeing: Path, chart: Path, book: Path) -> None:
    sizes = [
        good(call("plan", "--json", "-m", seeing, book, *more)).json["plan"]["memory"]["weights_bytes"]
        for more in ((), ("--image", chart))
    ]
    assert sizes[0] < sizes[1]
    answer = good(call("ask", "--json", "-m", seeing, "-n", "2", book, "Who?")).json
    assert answer["model"]["weight_bytes"] == sizes[0]


def test_a_saved_prefill_is_of_one_picture(call: Call, seeing: Path, chart: Path, book: Path) -> None:
    """By its content: another name is the same picture, another picture of the same size is not."""
    asked = ("ask", "--json", "-m", seeing, "-n", "4", book, "What is it?", "--image")
    first = good(call(*asked, chart)).json
    assert first["kv"]["cache"] == "miss"
    copy = chart.with_name("copy.png")
    copy.write_bytes(chart.read_bytes())
    again = good(call(*asked, copy)).json
    assert (again["kv"]["cache"], again["answer"]) == ("hit", first["answer"])
    copy.write_bytes(pictures.png(40, 30, seed=7))
    assert good(call(*asked, copy)).json["kv"]["cache"] == "miss"
    assert good(call("ask", "--json", "-m", seeing, "-n", "4", book, "What is it?")).json["kv"]["cache"] == "miss"


def test_a_longer_text_continues_the_prefill_of_a_picture(call: Call, seeing: Path, chart: Path, book: Path) -> None:
    asked = ("--json", "-m", seeing, "--image", chart, "--policy", "keydiff(budget=128)", "--chunk-size", "64")
    good(call("prefill", *asked, book))
    book.write_text(TEXT * 12)
    answer = good(call("ask", *asked, "-n", "4", book, "Who?")).json
    assert answer["kv"]["cache"] == "resumed"
    assert good(call("ask", *asked, "-n", "4", "--no-cache", book, "Who?")).json["answer"] == answer["answer"]


def test_a_portable_file_needs_no_picture(call: Call, seeing: Path, chart: Path, folder: Path) -> None:
    good(call("prefill", "-q", "-m", seeing, "--image", chart, "-o", "chart.kv", "--no-cache"))
    fresh = good(call("ask", "--json", "-m", seeing, "-n", "6", "--no-cache", "--image", chart, "What is it?")).json
    chart.unlink()
    answer = good(call("ask", "--json", "-m", seeing, "-n", "6", folder / "chart.kv", "What is it?")).json
    assert answer["kv"]["cache"] == "hit"
    assert answer["answer"] == fresh["answer"]
    (folder / "other.png").write_bytes(pictures.png(9, 9))
    outcome = call("ask", "-q", "-m", seeing, "chart.kv", "--image", "other.png", "What is it?")
    refused(outcome, 2, "pictures precede the text")


def test_a_question_is_continued_with_its_pictures(call: Call, seeing: Path, chart: Path) -> None:
    asked = ("--json", "-m", seeing, "-n", "4", "--policy", "keydiff(budget=64)")
    first = good(call("ask", *asked, "--image", chart.name, "What is it?")).json
    second = good(call("ask", *asked, "-c", "And what else?")).json
    assert second["document"]["tokens"] == first["document"]["tokens"]
    assert second["kv"]["cache"] == "hit"


def test_a_chat_about_a_picture(call: Call, seeing: Path, chart: Path) -> None:
    lines = b"What is it?\nAnd why?\n/stats\n"
    outcome = good(call("chat", "-m", seeing, "-n", "4", "--image", chart, "--session", "it", stdin=lines))
    assert "1 picture" in outcome.err
    chart.rename(chart.with_name("moved.png"))
    assert call("chat", "-q", "-m", seeing, "--session", "it", stdin=b"Who?\n").code == 3
    chart.with_name("moved.png").rename(chart)
    assert "1 picture" in good(call("chat", "-m", seeing, "-n", "4", "--session", "it", stdin=b"Who?\n")).err


def test_pages_as_pictures(call: Call, seeing: Path, folder: Path) -> None:
    pages = [makers.Page(makers.lines([f"This is page {n} of a short report."])) for n in (1, 2, 3)]
    (folder / "report.pdf").write_bytes(makers.pdf(pages))
    asked = ("-m", seeing, "-n", "2", "report.pdf", "What?")
    plain = good(call("ask", "--json", *asked)).json["document"]["tokens"]
    one = good(call("ask", "--json", *asked, "--pages-as-images", "3")).json["document"]["tokens"]
    two = good(call("ask", "--json", *asked, "--pages-as-images", "1,3")).json["document"]["tokens"]
    assert plain < one < two
    refused(call("ask", "-q", *asked, "--pages-as-images", "2-9"), 2, "--pages-as-images: report.pdf has 3 pages")
    refused(call("ask", "-q", *asked, "--pages-as-images", "x"), 2, "--pages-as-images x")
    (folder / "book.txt").write_text(TEXT)
    refused(call("ask", "-q", "-m", seeing, "book.txt", "?", "--pages-as-images", "1"), 2, "none was named")


def test_a_scan_is_read_as_pictures(call: Call, seeing: Path, folder: Path) -> None:
    """Its pages have no text, which is a warning if they are seen."""
    Image.new("RGB", (60, 80), "red").save(folder / "scan.pdf")
    assert call("ask", "-q", "-m", seeing, "scan.pdf", "What?").code == 3
    outcome = good(call("ask", "-m", seeing, "-n", "2", "scan.pdf", "What?", "--pages-as-images", "1"))
    assert "warning" in outcome.err
    assert "1 picture" in outcome.err


def test_a_text_model_reads_no_pictures(call: Call, tiny_model: Path) -> None:
    """Said before anything is read: neither picture nor book is there."""
    for command in (("ask", "book.txt", "What?"), ("prefill", "book.txt"), ("plan", "book.txt"), ("chat", "book.txt")):
        for option in (("--image", "no.png"), ("--pages-as-images", "1")):
            refused(call(*command, "-q", "-m", tiny_model, *option), 4, "text model", "reads no pictures")


def test_the_default_model_is_not_fetched_to_say_so(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcli.models.resolve.resolve", lambda *_, **__: pytest.fail("looked for the model"))
    refused(call("ask", "-q", "--image", "no.png", "What?"), 4, "smollm2-135m is a text model")


def test_the_pictures_of_other_families_are_refused(call: Call, tiny_model: Path, folder: Path) -> None:
    shutil.copytree(tiny_model, folder / "other")
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "other" / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl", "vision_config": {}}))
    refused(call("ask", "-q", "-m", "other", "--image", "no.png", "What?"), 4, "qwen2_vl", "smolvlm")


def test_a_model_without_an_image_processor_is_one_line(call: Call, seeing: Path, folder: Path, chart: Path) -> None:
    shutil.copytree(seeing, folder / "bare")
    (folder / "bare" / "preprocessor_config.json").unlink()
    for command in ("plan", "ask"):
        question = ["What?"] * (command == "ask")
        outcome = call(command, "-q", "-m", folder / "bare", "--image", chart, *question)
        refused(outcome, 4, "its image processor cannot be loaded")


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("empty.png", b"", ["empty.png"]),
        ("text.png", b"no picture at all", ["text.png is not a picture", "PNG"]),
        ("cut.png", pictures.png(40, 30)[:200], ["cut.png is damaged"]),
        ("away.png", None, ["away.png does not exist"]),
    ],
)
def test_a_bad_picture_is_one_line(
    call: Call, seeing: Path, folder: Path, name: str, data: bytes | None, parts: list[str]
) -> None:
    if data is not None:
        (folder / name).write_bytes(data)
    refused(call("ask", "-q", "-m", seeing, "--image", name, "What?"), 3, *parts)


@pytest.mark.parametrize("size", [(20_000, 9_000), (60_000, 60_000)])
def test_a_huge_picture_is_one_line(call: Call, seeing: Path, folder: Path, size: tuple[int, int]) -> None:
    """Its pixels are never unpacked: the file says how many there are."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    refused(call("ask", "-q", "-m", seeing, "--image", "huge.png", "What?"), 3, "huge.png has", "100,000,000")


def test_what_takes_no_pictures_says_so(call: Call, seeing: Path, chart: Path, book: Path) -> None:
    for option in ("--each", "--quotes-only"):
        refused(call("ask", "-q", "-m", seeing, "--image", chart, option, book, "What?"), 2, option, "pictures")

"""Saved readings as a person meets them: asked twice, killed and resumed, carried elsewhere."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests import dtype
from tests.e2e import forked
from tests.e2e.conftest import PROGRAM, Call, Validate
from tests.e2e.readings import POLICY, TEXT, ask, cache, saved

SMALL = (*POLICY, "--chunk-size", "512")
"""A text that has grown is continued at the end of a chunk, whose default depends on the machine."""


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def test_the_second_question_reads_nothing(call: Call, tiny_model: Path, book: Path, shelf: Path) -> None:
    first = ask(call, tiny_model, *POLICY, book, "Who?")
    second = ask(call, tiny_model, *POLICY, book, "Who?")
    other = ask(call, tiny_model, *POLICY, book, "Where?")
    assert [cache(a) for a in (first, second, other)] == ["miss", "hit", "hit"]
    tokens = second["document"]["tokens"]  # type: ignore[index]
    assert re.search(rf"cached +{tokens:,} tokens \(", str(second["err"]))
    assert "prefill " not in str(second["err"])
    assert second["timing"]["prefill_s"] == 0  # type: ignore[index]
    assert second["answer"] == first["answer"]
    assert second["kv"] == {**first["kv"], "cache": "hit"}  # type: ignore[dict-item]
    assert other["answer"] == ask(call, tiny_model, *POLICY, "--no-cache", book, "Where?")["answer"]
    (path,) = saved(shelf)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(shelf.stat().st_mode) == 0o700


def test_no_cache_and_rebuild(call: Call, tiny_model: Path, book: Path, shelf: Path) -> None:
    assert cache(ask(call, tiny_model, *POLICY, "--no-cache", book, "Who?")) == "off"
    assert not saved(shelf)
    ask(call, tiny_model, *POLICY, book, "Who?")
    assert cache(ask(call, tiny_model, *POLICY, "--no-cache", book, "Who?")) == "off"
    (path,) = saved(shelf)
    before = path.stat().st_mtime_ns
    assert cache(ask(call, tiny_model, *POLICY, "--rebuild", book, "Who?")) == "miss"
    assert path.stat().st_mtime_ns > before
    assert cache(ask(call, tiny_model, "Who?")) == "off"


def test_a_policy_that_reads_for_the_question(call: Call, tiny_model: Path, book: Path) -> None:
    policy = ("--policy", "snapkv(budget=200)")
    found = [cache(ask(call, tiny_model, *policy, book, q)) for q in ("Who?", "Where?", "Who?")]
    assert found == ["miss", "miss", "hit"]


def test_each_answer_of_a_batch_is_that_of_a_single_run(call: Call, tiny_model: Path, book: Path) -> None:
    options = ("-m", tiny_model, "-n", "9", "--json", "--no-cache", book)
    for policy in ("keydiff(budget=200)", "snapkv(budget=200)"):
        batch = call("ask", *options, "--policy", policy, "-e", "Who?", "-e", "Where?", "-e", "Who else?")
        single = [call("ask", *options, "--policy", policy, q).json for q in ("Who?", "Where?", "Who else?")]
        assert [json.loads(line)["answer"] for line in batch.out.splitlines()] == [a["answer"] for a in single]


def test_another_text_a_longer_text(call: Call, tiny_model: Path, folder: Path, book: Path) -> None:
    """A file that has grown is continued, and so is a list of files that has grown."""
    ask(call, tiny_model, *SMALL, book, "Who?")
    book.write_text(TEXT + "He was the son of a king.")
    grown = ask(call, tiny_model, *SMALL, book, "Who?")
    assert cache(grown) == "resumed"
    assert re.search(r"resumed +512 of ", str(grown["err"]))
    assert grown["answer"] == ask(call, tiny_model, *SMALL, "--no-cache", book, "Who?")["answer"]
    for name in ("b.txt", "c.txt"):
        (folder / name).write_text(TEXT)
    assert cache(ask(call, tiny_model, *SMALL, book, "b.txt", "Who?")) == "resumed"
    assert cache(ask(call, tiny_model, *SMALL, book, "b.txt", "c.txt", "Who?")) == "resumed"


def test_a_second_file_continues_the_reading_of_the_first(
    call: Call, tiny_model: Path, folder: Path, book: Path
) -> None:
    (folder / "b.txt").write_text("Then it rained. " * 40)
    ask(call, tiny_model, *SMALL, book, "Who?")
    both = ask(call, tiny_model, *SMALL, book, "b.txt", "Who?")
    assert cache(both) == "resumed"
    fresh = ask(call, tiny_model, *SMALL, "--no-cache", book, "b.txt", "Who?")
    assert both["answer"] == fresh["answer"]


def test_one_portable_file(
    call: Call, tiny_model: Path, folder: Path, book: Path, validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = call("prefill", "-m", tiny_model, *POLICY, "-s", "Be brief.", "--chunk-size", "300", book, "-o", "book.kv")
    assert made.code == 0, made.err
    assert made.out == "book.kv\n"
    assert stat.S_IMODE((folder / "book.kv").stat().st_mode) == 0o600
    plain = ask(call, tiny_model, *POLICY, "-s", "Be brief.", "--chunk-size", "300", "--no-cache", book, "Who?")
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(folder / "elsewhere"))
    book.unlink()
    answer = ask(call, tiny_model, "book.kv", "Who?")
    assert cache(answer) == "hit"
    for name in ("answer", "document", "usage"):
        assert answer[name] == plain[name]
    (folder / "more.txt").write_text("He was the son of a king. " * 20)
    longer = ask(call, tiny_model, "book.kv", "more.txt", "Who?")
    assert cache(longer) == "resumed"
    assert longer["document"]["files"] == [str(book), "more.txt"]  # type: ignore[index]
    made = call("prefill", "-m", tiny_model, "book.kv", "more.txt", "-o", "both.kv", "--no-cache", "--json")
    validate(made.json)
    assert made.json["reading"]["cache"] == "resumed"
    assert ask(call, tiny_model, "both.kv", "Who?")["answer"] == longer["answer"]


def test_what_does_not_fit_is_refused(
    call: Call, tiny_model: Path, folder: Path, book: Path, validate: Validate
) -> None:
    assert call("prefill", "-q", "-m", tiny_model, *POLICY, book, "-o", "book.kv").code == 0
    for options, field in (
        (("--policy", "keydiff(budget=100)"), "recipe"),
        (("--budget", "100"), "recipe"),
        (("--chunk-size", "100"), "chunk"),
        (("--dtype", "float16"), "dtype"),
        (("-s", "Be brief."), "template"),
        (("-r",), "template"),
    ):
        refused = call("ask", "-m", tiny_model, "--json", *options, "book.kv", "Who?")
        assert refused.code == 7, (options, refused.err)
        assert f"its {field} is" in refused.err
        validate(refused.json)
    from tests.e2e.conftest import save_tiny

    other = save_tiny(folder / "other", hidden=64)
    refused = call("ask", "-m", other, "book.kv", "Who?")
    assert refused.code == 7
    assert "fingerprint" in refused.err
    whole = (folder / "book.kv").read_bytes()
    for bad in (
        whole[:-1],
        whole[:-2] + b"xy",
        b"PK" + whole[2:],
        b"",
        whole.replace(b'"kvcli": "1"', b'"kvcli": "9"', 1),
    ):
        (folder / "book.kv").write_bytes(bad)
        refused = call("ask", "-m", tiny_model, "book.kv", "Who?")
        assert refused.code == 7, refused.err
        assert len(refused.err.splitlines()) <= 4
    assert "its version is 9" in refused.err
    assert call("ask", "-m", tiny_model, "book.kv", "other.kv", "Who?").code == 7
    assert call("ask", "-m", tiny_model, book, "book.kv", "Who?").code == 2
    assert call("ask", "-m", tiny_model, "--rebuild", "missing.kv", "Who?").code == 3


def test_a_damaged_reading_is_read_again_and_replaced(call: Call, tiny_model: Path, book: Path, shelf: Path) -> None:
    first = ask(call, tiny_model, *POLICY, book, "Who?")
    (path,) = saved(shelf)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = ask(call, tiny_model, *POLICY, book, "Who?")
    assert cache(again) == "miss"
    assert str(again["err"]).count("warning") == 2  # this one, and the length of the answer
    assert again["answer"] == first["answer"]
    assert cache(ask(call, tiny_model, *POLICY, book, "Who?")) == "hit"


def test_prefill_and_then_ask(call: Call, tiny_model: Path, book: Path, shelf: Path, validate: Validate) -> None:
    """What a person had read is used, although ask alone would have read for the question."""
    assert ask(call, tiny_model, book, "Why?")["kv"]["recipe"].startswith("snapkv")  # type: ignore[index]
    made = call("prefill", "-m", tiny_model, "--json", book)
    validate(made.json)
    assert made.json["reading"]["complete"] is True
    answer = ask(call, tiny_model, book, "Who?")
    assert cache(answer) == "hit"
    assert answer["kv"]["recipe"].startswith("keydiff")  # type: ignore[index]
    assert (
        call("prefill", "-q", "-m", tiny_model, book).out
        == f"{saved(shelf)[-1].parent / made.json['reading']['id']}.kv\n"
    )


def test_a_batch_marked_as_prefilled_later(call: Call, tiny_model: Path, book: Path) -> None:
    ask_both = call("ask", "-q", "-m", tiny_model, "-n", "5", book, "-e", "Who?", "-e", "Where?")
    assert ask_both.code == 0
    assert cache(ask(call, tiny_model, book, "Who?")) == "miss"
    assert call("prefill", "-q", "-m", tiny_model, book).code == 0
    assert cache(ask(call, tiny_model, book, "What?")) == "hit"


@pytest.mark.usefixtures("book")
def test_prefill_refuses_what_makes_no_sense(call: Call, tiny_model: Path) -> None:
    for args, code in (
        (("--policy", "snapkv", "book.txt"), 2),
        (("--no-cache", "book.txt"), 2),
        (("book.txt", "-o", "nowhere/book.kv"), 2),
        (("missing.txt",), 3),
        ((), 3),
    ):
        outcome = call("prefill", "-m", tiny_model, *args)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""


def test_every_file_by_itself(call: Call, tiny_model: Path, folder: Path, book: Path, validate: Validate) -> None:
    (folder / "b.txt").write_text("Nantucket! Take out your map and look at it. " * 9)
    (folder / "empty.txt").write_text("")
    outcome = call("ask", "-m", tiny_model, "-n", "9", "--json", *POLICY, "--each", book, "empty.txt", "b.txt", "Who?")
    assert outcome.code == 8
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    for answer in answers:
        validate(answer)
    assert [a.get("document", {}).get("files") for a in answers] == [[str(book)], None, ["b.txt"]]
    assert answers[1]["error"]["exit"] == 3
    assert answers[1]["file"] == "empty.txt"
    assert "1 of 3 files failed" in outcome.err
    for name, answer in ((book, answers[0]), ("b.txt", answers[2])):
        single = call("ask", "-m", tiny_model, "-n", "9", "--json", "--no-cache", *POLICY, name, "Who?").json
        assert single["answer"] == answer["answer"]
        assert single["document"] == answer["document"]
    assert call("ask", "-m", tiny_model, "--each", "Who?").code == 2


@pytest.mark.parametrize(
    "args",
    [
        ("prefill", *POLICY, "book.txt", "-o", "book.txt"),
        ("prefill", *POLICY, "book.txt", "-o", "notes.txt"),
        ("ask", *POLICY, "book.txt", "Who?", "-o", "book.txt"),
        ("ask", *POLICY, "-Q", "notes.txt", "book.txt", "-o", "notes.txt"),
        ("extract", "book.txt", "-o", "./book.txt"),
        ("cache", "export", "book.kv", "notes.txt"),
    ],
)
def test_no_document_is_overwritten(
    call: Call, tiny_model: Path, folder: Path, book: Path, args: tuple[str, ...]
) -> None:
    (folder / "notes.txt").write_text("Who?")
    assert call("prefill", "-q", "-m", tiny_model, *POLICY, book, "-o", "book.kv").code == 0
    model = ("-m", tiny_model) if args[0] in ("ask", "prefill") else ()
    outcome = call(*args, *model)
    assert outcome.code == 2, outcome.err
    assert "not overwritten" in outcome.err or "would overwrite" in outcome.err
    assert book.read_text() == TEXT
    assert (folder / "notes.txt").read_text() == "Who?"


def test_extract_shows_what_a_saved_reading_has_read(call: Call, tiny_model: Path, book: Path) -> None:
    assert call("prefill", "-q", "-m", tiny_model, *POLICY, book, "-o", "book.kv").code == 0
    assert call("extract", "book.kv").out == TEXT + "\n"
    assert call("extract", "book.kv", "--pages", "1").code == 2


def test_a_killed_reading_is_resumed(
    slow_model: Path, folder: Path, environment: dict[str, str], shelf: Path, call: Call
) -> None:
    """``kill -9`` at any time, then Ctrl-C twice, then to the end: the answer is that of one uninterrupted run.

    The second Ctrl-C does not wait for the chunk; what a checkpoint has saved is still reported.
    """
    (folder / "long.txt").write_text(TEXT * 6)
    code = (
        f"{dtype.START}import sys; from kvcli.prompt_cache import checkpoint as module;"
        "module.EVERY_TOKENS = 1024; module._SHARE = 0.0;"
        "from kvcli.cli.app import main; main()"
    )
    options = ["-m", str(slow_model), "-n", "12", "--json", *POLICY, "long.txt", "Who?"]
    command = [PROGRAM[0], "-c", code, "ask", *options]

    def start() -> subprocess.Popen[bytes]:
        return forked.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def size() -> float:
        return max((p.stat().st_mtime for p in shelf.glob("*.kv")), default=0)

    with start() as process:
        while not size():
            time.sleep(0.02)
            assert process.poll() is None
        process.kill()
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    first = size()
    with start() as process:
        while size() == first:
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert b"resumed " in err
    assert re.search(rb"[1-9][\d,]* saved", err)
    assert b"to resume" in err
    assert json.loads(out)["error"]["exit"] == 130
    resumed = call("ask", *options)
    assert resumed.json["kv"]["cache"] == "resumed"
    whole = call("ask", "--no-cache", *options)
    assert resumed.json["answer"] == whole.json["answer"]
    assert resumed.json["kv"]["bytes"] == whole.json["kv"]["bytes"]
    assert not [p for p in shelf.glob("*.tmp") if p.stat().st_size]


def test_a_saved_reading_is_held_in_any_bits(call: Call, tiny_model: Path, book: Path, tmp_path: Path) -> None:
    """The reading is exact, and packed when it is taken up: another --kv-bits reads nothing again."""
    common = ("ask", "-m", tiny_model, "--json", "--policy", "keydiff(budget=64)", "-n", "4")
    found = {}
    for bits in (4, 16, 2, 8, 4):
        done = call(*common, "-v", "--kv-bits", str(bits), book, "Who?")
        answer = done.json
        assert (f" at {answer['kv']['bits']:.4g} bits · dropped" in done.err) == (bits < 16)  # with scales
        assert answer["kv"]["cache"] == ("miss" if not found else "hit")
        assert found.setdefault(bits, (answer["answer"], answer["kv"]["bits"])) == (
            answer["answer"],
            answer["kv"]["bits"],
        )
    assert 2 < found[2][1] < found[4][1] < found[8][1] < found[16][1]
    out = tmp_path / "book.kv"
    assert (
        call("prefill", "-m", tiny_model, "--policy", "keydiff(budget=64)", "--kv-bits", "4", book, "-o", out).code == 0
    )
    kept = call("ask", "-m", tiny_model, "--json", "-n", "4", out, "Who?").json
    assert (kept["kv"]["recipe"], kept["kv"]["bits"]) == ("keydiff(budget=64)+kivi", found[4][1])
    other = call("ask", "-m", tiny_model, "--json", "-n", "4", "--kv-bits", "8", out, "Who?").json
    assert (other["kv"]["recipe"], other["kv"]["bits"]) == ("keydiff(budget=64)+int8", found[8][1])

"""The program as a process: start-up, streams, signals."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvcli.models import devices
from tests.e2e import forked
from tests.e2e.conftest import PROGRAM, Call, Kvcli, Validate

pexpect = pytest.importorskip("pexpect")

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. "
HEAVY = ("torch", "transformers", "huggingface_hub", "numpy")


# --- starting ---


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["ask", "-h"],
        ["models", "--help"],
        ["prefill", "-h"],
        ["cache", "-h"],
        ["doctor", "-h"],
        ["map", "-h"],
        ["summarise", "-h"],
        ["library", "add", "-h"],
        ["-V"],
    ],
)
def test_help_is_quick(args: list[str], environment: dict[str, str]) -> None:
    """No help text waits for torch."""
    code = (
        "import sys; from kvcli.cli.app import run; code = run(sys.argv[1:]);"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], env=environment, capture_output=True, check=True)
    assert done.stderr.decode().strip() == "[]"
    assert done.stdout.startswith((b"Usage: kvcli", b"kvcli 0."))


def test_every_command_is_in_the_help(call: Call) -> None:
    text = call("-h").out
    assert call("help").out == text
    assert call("help", "cache", "ls").out == call("cache", "ls", "--help").out != text
    for command in ("ask", "prefill", "cache", "models", "recipes", "doctor"):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    assert call().code == 2
    assert call().out == ""
    assert "Usage:" in call().err


def test_the_help_of_ask_begins_with_eight_options(call: Call) -> None:
    first = call("ask", "--help").out.partition("Main options:\n")[2].partition("\n\n")[0]
    assert len(re.findall(r"^  -", first, re.MULTILINE)) == 8


def test_no_option_of_a_later_version(call: Call) -> None:
    text = call("ask", "-h").out
    assert "--session" not in text


def test_recipes(call: Call, validate: Validate) -> None:
    from kvcli import registry

    text = call("recipes")
    assert text.code == 0
    found = call("recipes", "--json").json
    validate(found)
    for key, axis in zip(("keep", "share", "fold", "prefill", "hold"), registry.KINDS, strict=True):
        assert [p["name"] for p in found[key]] == registry.names(axis)
        for policy in found[key]:
            assert policy["summary"].endswith(".")
            assert policy["name"] in text.out
    assert {"budget": 1024}.items() <= next(p for p in found["keep"] if p["name"] == "keydiff")["options"].items()


def test_doctor(call: Call, validate: Validate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SIDE", 64)  # what is measured, not how well
    found = call("doctor", "--json")
    validate(found.json)
    assert found.code == 0
    assert found.json["problems"] == []
    assert found.json["cache"]["path"] == str(tmp_path / "cache")
    assert found.json["default_model"]["present"] is False
    assert found.json["devices"][0]["gflops"] > 0
    assert "kvcli models pull" in call("doctor").out
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    sick = call("doctor")
    assert sick.code == 1
    assert "problem" in sick.out


# --- streams ---


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT * 20)
    return folder / "book.txt"


def test_no_escape_byte_into_a_pipe(kvcli: Kvcli, tiny_model: Path, book: Path) -> None:
    for args in (
        ("ask", "--stats", "-m", tiny_model, "-n", "5", book, "Who?"),
        ("ask", "missing.txt", "Who?"),
        ("ask", "--help"),
    ):
        done = kvcli(*args, FORCE_COLOR="1", GITHUB_ACTIONS="true")
        assert b"\x1b" not in done.stdout + done.stderr, args


def test_whatever_the_locale(kvcli: Kvcli, tiny_model: Path, folder: Path) -> None:
    (folder / "größe.txt").write_text("Größe 🐋\n" * 9)
    done = kvcli("ask", "--json", "-m", tiny_model, "-n", "5", "größe.txt", "Wie groß?", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_the_reader_goes_away(tiny_model: Path, book: Path, environment: dict[str, str]) -> None:
    """``kvcli ask … | head -c 1``: silence and 141."""
    command = [*PROGRAM, "ask", "-q", "-m", str(tiny_model), "-n", "3000", "--allow-repetition", str(book), "Who?"]
    process = forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(300) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_the_reader_was_never_there(environment: dict[str, str]) -> None:
    for args in (["--help"], ["recipes"], ["ask", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*PROGRAM, *args], env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=300, check=False
        )
        os.close(writer)
        assert done.returncode == 141, args
        assert done.stderr == b""


# --- signals ---

PAUSES = (0.5, 3.0, 20.0)
"""Seconds until a signal is sent: a longer pause is tried if a busy machine had not begun the work in a shorter one."""


def start(model: Path, book: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, "ask", "-m", str(model), *options, str(book), "Who?"]
    return forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(stream: io.BufferedReader, what: bytes) -> bytes:
    """Lines of ``stream`` up to the one that begins with ``what``."""
    seen = b""
    for line in stream:
        seen += line
        if line.startswith(what):
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_reading(
    slow_model: Path,
    folder: Path,
    environment: dict[str, str],
    number: signal.Signals,
    code: int,
    validate: Validate,
) -> None:
    import json

    (folder / "long.txt").write_text(TEXT * 3000)
    tokens = r"at ([\d,]+) of ([\d,]+) tokens"
    for pause in PAUSES:
        with start(slow_model, folder / "long.txt", environment, "--json") as process:
            wait_for(process.stderr, b"model ")  # type: ignore[arg-type]
            time.sleep(pause)
            process.send_signal(number)
            out, err = process.communicate(timeout=300)
        assert process.returncode == code
        (said, hint) = err.decode().splitlines()
        found = re.search(tokens, said)
        assert found, said
        if found[1] != "0":
            break
    assert 0 < int(found[1].replace(",", "")) < int(found[2].replace(",", ""))
    assert "same command" in hint
    validate(json.loads(out))
    assert json.loads(out)["error"]["exit"] == code


def test_a_signal_in_an_answer(slow_model: Path, book: Path, environment: dict[str, str]) -> None:
    """SIGTERM here, and Ctrl-C in the answer as JSON below."""
    with start(slow_model, book, environment, "-n", "20000", "--allow-repetition") as process:
        assert process.stdout is not None
        first = process.stdout.read(5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert (first + out).endswith(b"\n")
    assert (first + out).count(b"\n") == 1
    made = re.search(r"stopped +after ([\d,]+) tokens", err.decode())
    assert made, err
    assert int(made[1].replace(",", "")) >= len((first + out).strip())
    assert b"Traceback" not in err


def test_a_signal_in_an_answer_as_json(
    slow_model: Path, book: Path, environment: dict[str, str], validate: Validate
) -> None:
    import json

    for pause in PAUSES:
        with start(
            slow_model, book, environment, "-n", "20000", "--allow-repetition", "--json", "--no-cache"
        ) as process:
            wait_for(process.stderr, b"prefill ")  # type: ignore[arg-type]
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 130
        validate(json.loads(out))
        assert json.loads(out)["finish_reason"] == "interrupted"
        if json.loads(out)["answer"]:
            break
    assert json.loads(out)["answer"]


# --- a terminal ---


def on_a_terminal(args: list[str], environment: dict[str, str], width: int = 120) -> pexpect.spawn:
    child = forked.spawn(PROGRAM[0], PROGRAM[1:] + args, env=environment, dimensions=(24, width), timeout=300)
    child.logfile_read = io.BytesIO()
    return child


def test_progress_on_a_terminal(slow_model: Path, folder: Path, environment: dict[str, str]) -> None:
    (folder / "long.txt").write_text(TEXT * 60)
    child = on_a_terminal(["ask", "-m", str(slow_model), "-n", "5", str(folder / "long.txt"), "Who?"], environment)
    child.expect(pexpect.EOF)
    child.close()
    text = child.logfile_read.getvalue().decode()
    assert child.exitstatus == 0, text
    bars = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(
        r"prefill +[━╸╺]+ +\d+ % [\d,]+/[\d,]+ · [\d,]+ tok/s · [\d:.]+ s? ?left · [\d.]+/[\d.]+ GiB", bars
    )
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
    assert "keeping" in text


@pytest.mark.parametrize(("env", "columns"), [({"TERM": "dumb"}, 100), ({"NO_COLOR": "1"}, 20)])
def test_a_narrow_terminal_and_no_colours(
    tiny_model: Path, book: Path, environment: dict[str, str], env: dict[str, str], columns: int
) -> None:
    child = on_a_terminal(["ask", "-m", str(tiny_model), "-n", "5", str(book), "Who?"], {**environment, **env}, columns)
    child.expect(pexpect.EOF)
    child.close()
    text = child.logfile_read.getvalue()
    assert child.exitstatus == 0, text
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", text)
    if env == {"TERM": "dumb"}:
        assert b"\x1b" not in text


def test_ctrl_c_on_a_terminal(slow_model: Path, folder: Path, environment: dict[str, str]) -> None:
    (folder / "long.txt").write_text(TEXT * 3000)
    child = on_a_terminal(["ask", "-m", str(slow_model), str(folder / "long.txt"), "Who?"], environment)
    child.expect("tok/s")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    text = child.logfile_read.getvalue()
    assert child.exitstatus == 130, text
    assert b"interrupted" in text
    assert b"same command" in text
    assert text.count(b"\x1b[?25l") == text.count(b"\x1b[?25h") == 1


def test_what_a_document_says_does_not_drive_the_terminal(
    tiny_model: Path, book: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:

    from kvcli.events import Answer, Token

    def evil(*_: object, **__: object) -> object:
        yield Token(1, "safe\x1b]0;title\x07\x1b[2J")
        yield Token(2, "\ttab\n\n")
        yield Answer("safe\x1b]0;title\x07\x1b[2J\ttab\n\n", "stop", 1, 2, 0.1, 0.1)

    monkeypatch.setattr("kvcli.pipeline.pipeline.generate", evil)
    for options in ([], ["-S"]):
        outcome = call("ask", "-m", tiny_model, *options, book, "Who?")
        assert outcome.out == "safe]0;title[2J\ttab\n"

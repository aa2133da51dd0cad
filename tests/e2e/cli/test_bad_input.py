"""Bad input gets one line, one hint, the right exit code, and nothing on stdout. The wording: golden/messages.txt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import golden
from tests.e2e.conftest import Call, Outcome, Validate

ASK = ("ask", "-m", "{model}")

CASES: dict[str, tuple[tuple[str, ...], int, str]] = {  # arguments, exit code, a name or number that is told
    # usage
    "no command": (("aks", "a.txt", "Who?"), 2, ""),
    "no question": (("ask",), 2, ""),
    "only a file": (("ask", "a.txt"), 2, ""),
    "question before the file": (("ask", "Who?", "a.txt"), 2, ""),
    "empty question": (("ask", "a.txt", ""), 2, ""),
    "blank question": (("ask", "a.txt", " \n\t"), 2, ""),
    "empty -e": (("ask", "a.txt", "-e", "Who?", "-e", ""), 2, "2 of 2"),
    "question without quotes": (("ask", "a.txt", "who", "is", "Pip"), 2, "who"),
    "question of no characters": (("ask", "a.txt", "Who \udcff?"), 2, ""),
    "system of no characters": (("ask", "-s", "\udcff", "a.txt", "Who?"), 2, ""),
    "unknown option": (("ask", "--polcy", "full", "a.txt", "Who?"), 2, "--policy"),
    "later option": (("ask", "--session", "x", "a.txt", "Who?"), 2, "--session"),
    "odd bits": (("ask", "--kv-bits", "5", "a.txt", "Who?"), 2, "16, 8, 4, 2"),
    "bits twice": (("ask", "--kv-bits", "4", "--policy", "full+int8", "a.txt", "Who?"), 2, "int8"),
    "option without a value": (("ask", "a.txt", "Who?", "-n"), 2, ""),
    "no tokens": (("ask", "-n", "0", "a.txt", "Who?"), 2, "--max-tokens"),
    "half a token": (("ask", "-n", "1.5", "a.txt", "Who?"), 2, "--max-tokens"),
    "cold": (("ask", "--temp", "-1", "a.txt", "Who?"), 2, "--temp"),
    "top-p of nothing": (("ask", "--temp", "1", "--top-p", "0", "a.txt", "Who?"), 2, "top-p"),
    "top-p in vain": (("ask", "--top-p", "0.9", "a.txt", "Who?"), 2, "--top-p"),
    "chunk of nothing": (("ask", "--chunk-size", "0", "a.txt", "Who?"), 2, "--chunk-size"),
    "raw with a system message": (("ask", "-r", "-s", "x", "a.txt", "Who?"), 2, "--system"),
    "budget 0": (("ask", "--budget", "0", "a.txt", "Who?"), 2, ""),
    "budget 0 %": (("ask", "--budget", "0%", "a.txt", "Who?"), 2, ""),
    "budget 200 %": (("ask", "--budget", "200%", "a.txt", "Who?"), 2, ""),
    "budget of words": (("ask", "--budget", "much", "a.txt", "Who?"), 2, "--budget much"),
    "budget below 0": (("ask", "--budget=-5", "a.txt", "Who?"), 2, "--budget -5"),
    "half a unit": (("ask", "--budget", "10.5", "a.txt", "Who?"), 2, ""),
    "budget in a recipe": (("ask", "--policy", "keydiff(budget=0)", "a.txt", "Who?"), 2, "budget"),
    "unknown recipe": (("ask", "--policy", "magic", "a.txt", "Who?"), 2, "magic"),
    "broken recipe": (("ask", "--policy", "keydiff(budget", "a.txt", "Who?"), 2, ""),
    "unknown field": (("ask", "--policy", "keydiff(size=3)", "a.txt", "Who?"), 2, "size"),
    "budget for full": ((*ASK, "--policy", "full", "--budget", "9", "a.txt", "Who?"), 2, "budget"),
    "less than a unit": ((*ASK, "--dtype", "float32", "--budget", "1B", "a.txt", "Who?"), 2, ""),
    "unknown dtype": ((*ASK, "--dtype", "float7", "a.txt", "Who?"), 2, "float7"),
    "unknown device": ((*ASK, "--device", "abacus", "a.txt", "Who?"), 2, "abacus"),
    "output is a directory": (("ask", "-o", ".", "a.txt", "Who?"), 2, ""),
    "output nowhere": (("ask", "-o", "no/where.txt", "a.txt", "Who?"), 2, "no"),
    "stdin for both": (("ask", "-f", "-", "-Q", "-"), 2, ""),
    "pages of nothing": (("ask", "--pages", "0", "a.txt", "Who?"), 2, ""),
    "pages of a text": (("ask", "--pages", "1-2", "a.txt", "Who?"), 2, "a.txt"),
    "include without a directory": (("ask", "--include", "*.py", "a.txt", "Who?"), 2, ""),
    # input
    "extract a missing file": (("extract", "b.txt"), 3, "b.txt"),
    "missing file": (("ask", "b.txt", "Who?"), 3, "b.txt"),
    "missing -f": (("ask", "-f", "b.txt", "Who?"), 3, "b.txt"),
    "missing questions": (("ask", "a.txt", "-Q", "q.txt"), 3, "q.txt"),
    "no questions": (("ask", "a.txt", "-Q", "blank.txt"), 3, "blank.txt"),
    "questions that are no JSON": (("ask", "a.txt", "-Q", "bad.jsonl"), 3, "line 2 of bad.jsonl"),
    "questions of another shape": (("ask", "a.txt", "-Q", "other.jsonl"), 3, "line 1 of other.jsonl"),
    "directory": (("ask", "notmodel", "Who?"), 3, "notmodel"),
    "empty file": (("ask", "empty.txt", "Who?"), 3, ""),
    "blank file": (("ask", "blank.txt", "Who?"), 3, ""),
    "binary junk": (("ask", "junk.bin", "Who?"), 3, ""),
    "pdf": (("ask", "book.pdf", "Who?"), 3, "book.pdf"),
    "one bad file among good ones": (("ask", "a.txt", "junk.bin", "Who?"), 3, "junk.bin"),
    # model
    "unknown model": (("ask", "-m", "no-such-model", "a.txt", "Who?"), 4, "no-such-model"),
    "not a model": (("ask", "-m", "./notmodel", "a.txt", "Who?"), 4, "notmodel"),
    # too long
    "full and longer than the window": ((*ASK, "--policy", "full", "long.txt", "Who?"), 6, "4,096"),
    "a question longer than the window": ((*ASK, "a.txt", "Who? " * 1000), 6, "4,096"),
}


def make_folder(folder: Path) -> None:
    files: dict[str, bytes] = {
        "a.txt": b"Queequeg was a native of Kokovoko.",
        "long.txt": b"Queequeg was a native of Kokovoko. " * 200,
        "empty.txt": b"",
        "blank.txt": b" \n\n",
        "junk.bin": bytes(range(256)) * 8,
        "book.pdf": b"%PDF-1.7\n",
        "bad.jsonl": b'{"id": 1, "question": "Who?"}\nWho?\n',
        "other.jsonl": b'["Who?"]\n',
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "notmodel").mkdir()


def check(outcome: Outcome, code: int, said: str) -> None:
    lines = outcome.err.splitlines()
    shown = [line for line in lines if not line.startswith(("document ", "model ", "prefill ", "heads "))]
    assert outcome.code == code, outcome.err
    assert shown[0].startswith("kvcli: error: ")
    assert said in shown[0]
    assert len(shown) <= 2
    assert all(line.startswith("  try: ") for line in shown[1:])
    assert "Traceback" not in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_the_right_exit(case: str, call: Call, folder: Path, tiny_model: Path) -> None:
    args, code, said = CASES[case]
    make_folder(folder)
    outcome = call(*(a.replace("{model}", str(tiny_model)) for a in args))
    check(outcome, code, said)
    assert outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if line.startswith(("kvcli: ", "  try: "))]
    golden.check(f"error: {case}", "\n".join(lines), hide={str(tiny_model): "MODEL", str(folder): "HERE"})


def test_no_error_of_an_earlier_version_is_in_the_golden_file() -> None:
    named = {name.removeprefix("error: ") for name in golden.load() if name.startswith("error: ")}
    assert {name for name in named if not name.startswith("kvcli ")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_as_json(case: str, call: Call, folder: Path, tiny_model: Path, validate: Validate) -> None:
    args, code, said = CASES[case]
    make_folder(folder)
    command, *rest = (a.replace("{model}", str(tiny_model)) for a in args)
    outcome = call(command, "--json", *rest)
    check(outcome, code, said)
    (line,) = outcome.out.splitlines()
    validate(json.loads(line))
    assert json.loads(line)["error"]["exit"] == code
    assert said in json.loads(line)["error"]["message"]


def test_standard_input_that_is_empty_is_no_document(call: Call, tiny_model: Path) -> None:
    """``pdftotext missing.pdf - | kvcli ask …`` must not be answered out of thin air."""
    check(call("ask", "-m", tiny_model, "Who?", stdin=b""), 3, "stdin is empty")
    check(call("ask", "-m", tiny_model, "Who?", stdin=b"\x0c\n"), 3, "no text")
    check(call("ask", "-m", tiny_model, "Who?", stdin=b"%PDF-1.7"), 3, "stdin is damaged")


def test_more_than_memory(call: Call, folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(folder)
    monkeypatch.setattr("kvcli.planning.memory.free_on", lambda _device: 1000)
    outcome = call("ask", "-m", tiny_model, "--budget", "100%", "a.txt", "Who?")
    check(outcome, 5, "free")
    assert outcome.out == ""


def test_nothing_is_lost(call: Call, folder: Path, tiny_model: Path) -> None:
    """A run that fails leaves the file of -o as it was."""
    make_folder(folder)
    (folder / "answer.txt").write_text("precious")
    check(call("ask", "-m", tiny_model, "-o", "answer.txt", "junk.bin", "Who?"), 3, "binary")
    check(call("ask", "-m", tiny_model, "-o", "answer.txt", "--policy", "full", "long.txt", "Who?"), 6, "4,096")
    assert (folder / "answer.txt").read_text() == "precious"


def test_escapes_in_names_do_not_reach_the_terminal(call: Call) -> None:
    outcome = call("ask", "-f", "\x1b[31mred\nline.txt", "Who?")
    check(outcome, 3, "[31mred line.txt does not exist")


def test_a_defect_is_one_line_and_a_traceback_only_on_request(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(folder)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("kvcli.documents.read", broken)
    outcome = call("ask", "a.txt", "Who?")
    check(outcome, 1, "internal error: ZeroDivisionError: oh no")
    assert "--debug" in outcome.err
    assert "Traceback" in call("ask", "--debug", "a.txt", "Who?").err


def test_errors_of_the_system_become_resources(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(folder)
    for problem, said in (
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (OSError(28, "No space left on device", "book"), "no space left"),
    ):

        def broken(*_: object, problem: BaseException = problem) -> None:
            raise problem

        monkeypatch.setattr("kvcli.documents.read", broken)
        check(call("ask", "a.txt", "Who?"), 5, said)

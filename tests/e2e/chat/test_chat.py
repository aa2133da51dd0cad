"""``kvcli chat`` driven by a script: one line, one question."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcli.events import Answer, Token
from tests.e2e import forked, golden
from tests.e2e.conftest import PROGRAM, Call, save_tiny

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South. " * 40


@pytest.fixture(autouse=True)
def data(environment: dict[str, str], tmp_path: Path) -> Path:
    """Where conversations are saved; part of the environment of ``call`` and of processes."""
    environment["KVCLI_DATA_DIR"] = str(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def save_heads(path: Path, model: Path) -> None:
    """Random retaining heads for a model."""
    from kvcli.models.load import load
    from kvcli.models.weights import ModelSource
    from kvcli.retaining_heads import checkpoint
    from kvcli.retaining_heads.module import RetainingHeads

    loaded = load(ModelSource("tiny", model, "directory"), device="cpu")
    checkpoint.save(
        path, RetainingHeads.like(loaded.spec, width=8), checkpoint.HeadsCard(identity=checkpoint.identity(loaded))
    )


def chats(data: Path) -> list[Path]:
    return sorted((data / "chats").glob("*.json"))


def answers(path: Path) -> list[tuple[str, str]]:
    return [(t["question"], t["answer"]) for t in json.loads(path.read_text())["turns"]]


def test_one_question_per_line(call: Call, tiny_model: Path, book: Path, data: Path) -> None:
    made = call("chat", "-m", tiny_model, "-n", "9", book, stdin="Who?\r\n\nWhere, größe?".encode())
    assert made.code == 0, made.err
    (path,) = chats(data)
    found = answers(path)
    assert [q for q, _ in found] == ["Who?", "Where, größe?"]
    assert made.out == f"{found[0][1]}\n\n{found[1][1]}\n"
    assert "prefill" in made.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    quiet = call("chat", "-q", "-m", tiny_model, "-n", "9", "--context", book, stdin="Who?\nWhere, größe?\n".encode())
    assert quiet.out == made.out, "greedy, as the model's own settings have it"
    assert quiet.err == ""


def test_without_a_document(call: Call, tiny_model: Path, data: Path) -> None:
    made = call("chat", "-m", tiny_model, "-n", "5", stdin=b"Who?\n/files\n/kv\n/find x\n")
    assert made.code == 8
    assert "no document" in made.err
    assert "/add FILE" in made.out
    assert made.err.count("kvcli: error: ") == 2
    assert len(answers(chats(data)[0])) == 1


def test_quotes_follow_answers_and_open(call: Call, tiny_model: Path, folder: Path) -> None:
    (folder / "pier.txt").write_text(f"{TEXT}\n\nCaptain Wren keeps two parrots. She sailed in 1911.\n")
    lines = b"Who keeps two parrots?\n/quotes 1\n/open 1\n/open 9\nWhen did she sail?\n/quotes 1\n"
    made = call("chat", "-m", tiny_model, "-n", "4", "--cite", "pier.txt", stdin=lines)
    first, second = made.out.split("\n\n1. line")[0], made.out.splitlines()
    assert "1. line 3 “Captain Wren keeps two parrots.”" in first.splitlines()
    assert "»Captain Wren keeps two parrots.« She sailed in 1911." in made.out
    assert "quotes are 1 to 1" in made.err
    assert second[-1] == "1. line 3 “She sailed in 1911.”"
    silent = call(
        "chat", "-m", tiny_model, "-n", "4", "--cite", "--quotes", "0", "pier.txt", stdin=b"Who keeps parrots?\n"
    )
    assert "1. line" not in silent.out


@pytest.mark.parametrize(("said", "above"), [("Two parrots.", False), ("A herring.", True)])
def test_quotes_precede_an_answer_that_they_do_not_cover(
    call: Call, tiny_model: Path, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, said: str, above: bool
) -> None:
    """Of a model that is often wrong; the answer of another one is printed while it is written."""
    (folder / "pier.txt").write_text(f"{TEXT}\n\nCaptain Wren keeps two parrots. She sailed in 1911.\n")

    def write(*_: object, **__: object) -> Iterator[Token | Answer]:
        yield Token(0, said)
        yield Answer(said, "stop", 1, 1, 0.1, 0.1)

    monkeypatch.setattr("kvcli.chat.conversation.generate", write)
    command = ("chat", "-q", "-m", tiny_model, "--cite", "pier.txt")
    question = b"Say what Captain Wren keeps.\n"
    first = call(*command, stdin=question)
    assert first.code == 0, first.err
    after = first.out
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    before = call(*command, stdin=question).out
    assert after.startswith(f"{said}\n")
    assert (before == after) == (not above)
    assert not above or before.startswith("The answer below is not covered by these sentences of the text:\n1. line 3 ")
    assert f"\n\n{said}\n" in before or not above
    assert [answers(path)[-1][1] for path in chats(data)] == [said, said]


def test_questions_are_answered_in_words_of_the_document(
    call: Call, tiny_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that answers so, also later ones, which mean names that were said before."""
    (folder / "pier.txt").write_text(f"{TEXT}\n\nCaptain Wren keeps two parrots. She sailed in 1911.\n")
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(tiny_model),))
    command = ("chat", "-m", tiny_model, "-n", "9", "pier.txt")
    questions = b"What does Captain Wren keep?\nWhen did she sail?\n"
    made = call(*command, stdin=questions)
    said = made.out.strip().split("\n\n")
    assert len(said) == 2
    assert all(answer in (folder / "pier.txt").read_text() for answer in said)
    assert made.out != call(*command, "--budget", "512", stdin=questions).out


def test_going_on_reads_nothing(call: Call, tiny_model: Path, book: Path, data: Path) -> None:
    """In one go, or left and continued after every question: the same conversation."""
    options = ("-m", tiny_model, "-n", "9", "--budget", "300")
    whole = call("chat", *options, "--session", "whole", book, stdin=b"Who?\nWhere?\nWhy?\n")
    assert whole.code == 0, whole.err
    first = call("chat", *options, "--session", "parts", "-f", book, stdin=b"Who?\n")
    second = call("chat", "-n", "9", "-c", stdin=b"Where?\n")
    third = call("chat", "-n", "9", "--session", "parts", book, stdin=b"Why?\n/stats\n")
    assert [o.code for o in (first, second, third)] == [0, 0, 0], second.err + third.err
    for later in (second, third):
        assert "cached " in later.err
        assert "prefill " not in later.err
        assert "keydiff 300" in later.err
    assert "session  parts · 2 turns" in third.err
    saved = {p.stem: answers(p) for p in chats(data)}
    assert saved["parts"] == saved["whole"]


def test_going_on_from_another_folder(
    call: Call, tiny_model: Path, folder: Path, book: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model, heads and files that were named from where one was are found from where one is."""
    (folder / "model").symlink_to(tiny_model)
    save_heads(folder / "heads.safetensors", tiny_model)
    options = ("-m", "model", "--heads", "heads.safetensors", "-n", "9", "--session")
    whole = call("chat", *options, "whole", book.name, stdin=b"Who?\nWhere?\n")
    assert "locret" in whole.err
    assert call("chat", *options, "parts", book.name, stdin=b"Who?\n").code == 0
    (folder.parent / "elsewhere").mkdir()
    monkeypatch.chdir(folder.parent / "elsewhere")
    later = call("chat", "-c", "-n", "9", stdin=b"Where?\n")
    assert later.code == 0, later.err
    assert "cached " in later.err
    assert answers(data / "chats" / "parts.json") == answers(data / "chats" / "whole.json")


@pytest.mark.parametrize("first", ["ask", "chat"])
def test_a_first_question_is_answered_as_by_ask(call: Call, wide_model: Path, book: Path, first: str) -> None:
    """From one reading, whoever made it; and behind no document."""
    options = ("-m", wide_model, "-n", "24", "--policy", "keydiff(budget=300)")
    questions = ("Who?", "Where was he from?", "Queequeg?")
    found: dict[str, list[str]] = {"ask": [], "chat": []}
    for name in (first, *(found.keys() - {first})):
        for question in questions:
            if name == "ask":
                made = call("ask", *options, book, question)
            else:
                made = call("chat", *options, book, stdin=question.encode())
            assert made.code == 0, made.err
            found[name].append(made.out)
            assert ("prefill " in made.err) == (name == first and question == questions[0])
    assert found["ask"] == found["chat"]
    assert len(set(found["ask"])) == len(questions), "answers depend on the question"
    alone = call("ask", "-m", wide_model, "-n", "24", "Who?")
    assert call("chat", "-m", wide_model, "-n", "24", stdin=b"Who?\n").out == alone.out
    assert alone.out not in found["ask"], "answers depend on the text"


def test_the_chat_goes_on_when_its_turns_do_not_fit(
    call: Call, tmp_path: Path, book: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; and what is left and continued is what was never left."""
    small = save_tiny(tmp_path / "small", window=1024)
    options = ("-m", small, "-n", "16", "--budget", "256", "--chunk-size", "128")
    monkeypatch.setattr("kvcli.chat.setup.ROOM", 300)
    lines = b"What is the next one?\n" * 30
    made = call("chat", *options, "--session", "long", book, stdin=lines)
    assert made.code == 0, made.err
    assert made.err.count("evicted ") == 1
    long = json.loads((data / "chats" / "long.json").read_text())
    assert len(long["turns"]) == 30
    assert len(long["absorbed"]) >= 3
    for _ in range(3):
        call("chat", *options, "--session", "parts", book, stdin=b"What is the next one?\n" * 10)
    parts = json.loads((data / "chats" / "parts.json").read_text())
    assert parts["absorbed"] == long["absorbed"]
    assert [t["ids"] for t in parts["turns"]] == [t["ids"] for t in long["turns"]]


def test_undo_retry_clear(call: Call, tiny_model: Path, book: Path, data: Path) -> None:
    made = call(
        "chat", "-m", tiny_model, "-n", "9", book, stdin=b"Who?\nWhere?\n/undo\n/retry\n/clear\nWho?\n/undo\n/undo\n"
    )
    out = made.out.split()
    assert out[0] == out[2] == out[3]
    assert made.code == 8
    assert made.err.count("kvcli: error: ") == 1
    assert answers(chats(data)[0]) == []


def test_add_and_system_read_on(call: Call, tiny_model: Path, folder: Path, book: Path, data: Path) -> None:
    (folder / "more stuff.txt").write_text("He was the son of a king. " * 80)
    lines = b"Who?\n/add 'more stuff.txt'\nWho?\n/files\n/find SON OF\n/system Be brief.\n/system\nWho?\n"
    made = call("chat", "-m", tiny_model, "-n", "9", "--session", "a", book, stdin=lines)
    assert made.code == 0, made.err
    assert "resumed  3,072 of " in made.err
    assert "more stuff.txt · " in made.out
    assert "more stuff.txt, line 1: …" in made.out
    assert "He was the son of a king." in made.out
    assert "\nBe brief.\n" in made.out
    later = call("chat", "--session", "a", "-n", "9", stdin=b"/files\n/system\n")
    assert "cached " in later.err
    assert "prefill " not in later.err
    assert "more stuff.txt" in later.out
    assert len(answers(chats(data)[0])) == 3


def test_a_file_that_cannot_be_added_changes_nothing(
    call: Call, tiny_model: Path, folder: Path, book: Path, data: Path
) -> None:
    (folder / "empty.txt").write_text("")
    made = call(
        "chat", "-m", tiny_model, "-n", "9", book, stdin=b"Who?\n/add nowhere.txt empty.txt\n/add\nWho?\n/undo\n"
    )
    assert made.code == 8
    assert "nowhere.txt" in made.err
    assert json.loads(chats(data)[0].read_text())["added"] == []
    assert len(answers(chats(data)[0])) == 1


def test_set_save_load_export(call: Call, tiny_model: Path, folder: Path, book: Path, data: Path) -> None:
    lines = (
        b"Who?\n/set temp 0.9\n/set seed 3\n/set max_tokens 4\n/set\nWho?\n/undo\nWho?\n"
        b"/export a.md\n/export a.json\n/?\n/export a.html\n"
        b"/save evening\n/save evening\n/load nowhere\n/export a.txt\n/set temp x\n/set nothing 3\n/set top_p 7\n"
    )
    made = call("chat", "-m", tiny_model, "-n", "9", book, stdin=lines)
    assert "temperature 0.9, seed 3 · at most 4 tokens" in made.out
    for words in ("nowhere", "a.txt", "'x'", "'nothing 3'", "7"):
        assert words in made.err
    assert made.err.count("error: ") == 5
    found = answers(data / "chats" / "evening.json")
    assert found[0][0] == "Who?"
    assert len(found) == 2
    assert made.out.count(found[1][1]) >= 2, "the same seed draws the same answer"
    assert (folder / "a.md").read_text().endswith(f"> Who?\n\n{found[1][1]}\n")
    assert answers(folder / "a.json") == found
    assert "<blockquote>Who?</blockquote>" in (folder / "a.html").read_text()
    assert "/find TEXT" in made.out
    assert stat.S_IMODE((folder / "a.md").stat().st_mode) == 0o600
    other = call("chat", "-m", tiny_model, "-n", "9", book, stdin=b"/load evening\n/undo\n")
    assert other.code == 0, other.err
    assert len(answers(data / "chats" / "evening.json")) == 1


def test_page_and_kept(call: Call, tiny_model: Path, folder: Path) -> None:
    (folder / "two.html").write_text("<h1>One</h1><p>" + "first " * 300 + "</p><h1>Two</h1><p>" + "second " * 300)
    made = call("chat", "-m", tiny_model, "-n", "4", "two.html", stdin=b"/page 9\n/page x\n/kv\n/memory\n")
    assert made.err.count("error: ") == 2
    bars, ends, words = made.out.splitlines()[:3]
    assert len(bars) == len(ends) == 60
    assert set(bars) <= set(" ▁▂▃▄▅▆▇█")
    assert words.startswith("512 of ")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("-c",), 3),
        (("-c", "--session", "x"), 2),
        (("--session", "../x"), 2),
        (("-",), 2),
        (("missing.txt",), 3),
        (("--policy", "snapkv"), 2),
        (("--temp", "-1"), 2),
        (("--raw", "-s", "Be brief."), 2),
    ],
)
def test_bad_input(call: Call, tiny_model: Path, args: tuple[str, ...], code: int) -> None:
    made = call("chat", "-m", tiny_model, *args, stdin=b"Who?\n")
    assert (made.code, made.out) == (code, "")
    golden.check(f"error: kvcli chat {' '.join(args)}", made.err)


def test_bad_lines(call: Call, tiny_model: Path) -> None:
    """Each is said, and the next one is taken."""
    made = call("chat", "-m", tiny_model, "-n", "4", stdin=b"\xff\n/undoo\n/zzz\n/usr/bin is what?\n")
    assert made.code == 8
    assert "line 1 of " in made.err
    assert re.search("/undoo.*/undo\\b", made.err)
    assert made.err.count("kvcli: error: ") == 3
    assert len(made.out.strip()) == 4


def test_a_session_of_other_files_and_one_that_is_damaged(
    call: Call, tiny_model: Path, folder: Path, book: Path, data: Path
) -> None:
    (folder / "other.txt").write_text(TEXT)
    assert call("chat", "-m", tiny_model, "-n", "4", "--session", "a", book, stdin=b"Who?\n").code == 0
    other = call("chat", "-m", tiny_model, "--session", "a", "other.txt", stdin=b"Who?\n")
    assert (other.code, "book.txt" in other.err) == (2, True)
    (data / "chats" / "a.json").write_text("{")
    broken = call("chat", "-m", tiny_model, "--session", "a", stdin=b"Who?\n")
    assert (broken.code, "is damaged" in broken.err) == (7, True)


def test_no_escape_byte_into_a_pipe(tiny_model: Path, book: Path, environment: dict[str, str]) -> None:
    command = [*PROGRAM, "chat", "-m", str(tiny_model), "-n", "5", str(book)]
    env = {**environment, "FORCE_COLOR": "1"}
    done = forked.run(command, env=env, input=b"Who?\n/help\n", capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


def test_an_answer_in_circles_is_ended_unless_that_is_allowed(
    call: Call, tiny_model: Path, book: Path, data: Path
) -> None:
    made = call("chat", "-m", tiny_model, book, stdin=b"Who?\n/set max_tokens 500\n/retry\n")
    assert made.code == 0, made.err
    assert made.err.count("/set repeat_penalty") == 2
    assert "500 tokens" in call("chat", "-m", tiny_model, book, "-n", "500", "--allow-repetition", stdin=b"Who?\n").err
    assert len(answers(chats(data)[0])) == 1

"""``kvcli chat`` with the default model, on a real terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("pexpect")
pytest.importorskip("pyte")

from tests.e2e.cli.test_real import FILLER, model  # noqa: F401
from tests.e2e.conftest import surroundings
from tests.e2e.terminal import Talk, squeezed

pytestmark = pytest.mark.real

PASTE, PASTED = "\x1b[200~", "\x1b[201~"
NEEDLE = "The pass key is 71432. Remember it. 71432 is the pass key. "
Open = Callable[..., Talk]


@pytest.fixture
def chat(folder: Path, tmp_path: Path) -> Iterator[Open]:
    """``chat(ARGS, …)`` opens one; the model is the user's, readings and conversations are not."""
    from kvcli.utils import files

    cache, opened = tmp_path / "cache", list[Talk]()
    cache.mkdir()
    (cache / "models").symlink_to(files.cache_dir() / "models")
    own = {"KVCLI_CACHE_DIR": str(cache), "KVCLI_DATA_DIR": str(tmp_path / "data")}

    def begin(*args: str) -> Talk:
        opened.append(Talk([*args], surroundings() | own, folder, (50, 110)))
        return opened[-1]

    yield begin
    for talk in opened:
        talk.child.close(force=True)


def record(tmp_path: Path, name: str = "a") -> dict[str, object]:
    found: dict[str, object] = json.loads((tmp_path / "data" / "chats" / f"{name}.json").read_text())
    return found


def turns(tmp_path: Path, name: str = "a") -> list[dict[str, str]]:
    found = record(tmp_path, name)["turns"]
    assert isinstance(found, list)
    return found


def test_an_evening_with_the_default_model(chat: Open, folder: Path, tmp_path: Path) -> None:
    """Everything that can be typed, in an order that a person might choose; wrong words in between lose nothing."""
    (folder / "notes.html").write_text(f"<h1>One</h1><p>{FILLER * 15}{NEEDLE}{FILLER * 15}</p>")
    (folder / "more.txt").write_text("The cat is called Pepper. She is black and sleeps all day. " * 8)
    talk = chat("-n", "16", "--temp", "0", "--budget", "512", "--session", "a", "notes.html")
    talk.prompt(1)
    assert "71432" in talk.say("What is the pass key?", 2)
    found = re.fullmatch(
        r"smollm2-135m · locret · kept 512 of ([\d,]+) · 1 turn · ([\d.]+)/([\d.]+) GiB · [\d.]+ tok/s",
        talk.screen.display[-1].strip(),
    )
    assert found
    assert 0.3 < float(found[2]) < float(found[3])
    steps = [
        ("/help", r"/add FILE… +add documents"),
        ("/files", r"notes\.html · [\d,]+ characters"),
        ("/page 1", r"no page 1"),
        ("/page one", r"'one'"),
        ("/find 71432", r"line \d+: ….*71432"),
        ("/find", r"no text"),
        ("/sources", r"line"),
        ("/sources 7", r"no turn 7.* 1 to 1"),
        ("/retry", r"again +What is the pass key\?\n(.*\n)*.*71432"),
        ("/stats", r"turns +1, 0 "),
        ("/memory", r"prefill +[\d.]+ MiB"),
        ("/kv", r"512 of [\d,]+ tokens kept"),
        ("/set", r"temperature 0.*at most 16 tokens\nthink +show\ncite +on"),
        ("/set temp hot", r"temp: 'hot'"),
        ("/set colour red", r"'colour red'"),
        ("/export talk.md", r"exported +talk\.md"),
        ("/export talk.json", r"exported +talk\.json"),
        ("/export talk.doc", r"talk\.doc"),
        ("/load nowhere", r"no session nowhere"),
        ("/add nowhere.txt", r"nowhere\.txt"),
        ("/add", r"no file"),
        ("/undu", r"/undo\?"),
        ("/save b", r"--session b"),
    ]
    for line, words in steps:
        between = talk.say(line, 2)
        # A long path of the temporary folder wraps a line anywhere, also inside a word: no space counts then.
        wrapped = re.search(re.sub(r" \+?", "", words), squeezed(between))
        assert re.search(words, between) or wrapped, f"{line}: {words} is not in\n{between}"
        assert between.count("error") <= 1
    assert "71432" in (folder / "talk.md").read_text()
    assert json.loads((folder / "talk.json").read_text())["turns"] == turns(tmp_path) == turns(tmp_path, "b")

    for line, turn, words in (
        ("/add more.txt", 2, r"read +[\d,]+ tokens · kept 512 KV pairs"),
        ("/system Answer in one word.", 2, r"prefill +[\d,]+ tokens"),
    ):
        talk.key(line, line)
        talk.send("\r")
        talk.wait(lambda: squeezed(talk.text).endswith("[Y/n]"))
        talk.send("y\r")
        talk.prompt(turn)
        assert re.search(words, talk.text.rpartition("[Y/n]")[2])
    assert "more.txt · " in talk.say("/files", 2)
    assert talk.say("/system", 2).startswith("Answer in one word.\n")
    question = "What is the cat\ncalled?"
    talk.key(f"{PASTE}{question}{PASTED}", question)
    talk.send("\r")
    talk.prompt(3)
    assert turns(tmp_path, "b")[-1]["question"] == question
    assert question.split("\n")[0] in talk.say("/undo", 2)
    assert "all turns are removed" in talk.say("/clear", 1)
    assert "the session a has other added" in talk.say("/load a", 1)
    talk.send("/exit\r")
    assert talk.end() == 0
    assert "Traceback" not in talk.text

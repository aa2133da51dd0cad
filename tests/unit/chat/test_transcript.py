"""What is saved of a conversation comes back, belongs to one person, and is never half of it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kvcli.chat import transcript
from kvcli.chat.transcript import Transcript, Turn
from kvcli.errors import DamagedError, InputError, UsageError

TURNS = [Turn("Who?", "Pip — \u2028 \ud800", (3, 4), "stop", 1.5), Turn("What?", "", (), "interrupted")]
FULL = Transcript(
    "tiny", "f", ["/a b.txt"], [], {"budget": "12%"}, {"temperature": 0.5}, "Be brief.", TURNS, [1], "And?"
)


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))


def test_round_trip(tmp_path: Path) -> None:
    for kept in (Transcript(), FULL):
        transcript.save(tmp_path / "x.json", kept)
        assert transcript.load(tmp_path / "x.json") == kept


def test_modes_and_names() -> None:
    path = transcript.named("evening")
    transcript.save(path, FULL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for name in ("../evening", "", ".hidden", "a/b", "x" * 80):
        with pytest.raises(UsageError, match="session name"):
            transcript.named(name)


def test_a_new_one_has_a_name_of_its_own_and_the_last_is_the_one_saved_last() -> None:
    with pytest.raises(InputError, match="no conversation to continue"):
        transcript.last()
    paths = []
    for n in range(3):
        paths.append(transcript.fresh())
        transcript.save(paths[-1], FULL)
        os.utime(paths[-1], ns=(n, n))
    assert len(set(paths)) == 3
    assert transcript.last() == paths[-1]
    os.utime(paths[0], ns=(9, 9))
    assert transcript.last() == paths[0]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here" / "x.json"
    path.parent.mkdir()
    transcript.save(path, FULL)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        transcript.save(path, Transcript(turns=TURNS[:1]))
    assert transcript.load(path) == FULL
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "kvcli-chat/9"}, "format"),
        ({"turns": [{"question": 3, "answer": ""}]}, "int|str|3"),
        ({"turns": "x"}, "x"),
        ({"absorbed": [3]}, "turns are invalid"),
        ({"absorbed": [1, 0]}, "turns are invalid"),
        ({"turns": [{"question": "a", "answer": "", "ids": [-1]}], "absorbed": []}, "turns are invalid"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, object], why: str) -> None:
    path = tmp_path / "x.json"
    transcript.save(path, FULL)
    path.write_text(json.dumps({**json.loads(path.read_bytes().decode("utf-8", "surrogatepass")), **change}))
    with pytest.raises(DamagedError, match=why) as caught:
        transcript.load(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000])
def test_rubbish_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DamagedError, match="damaged or no conversation"):
        transcript.load(tmp_path / "x.json")
    with pytest.raises(InputError, match="no session y"):
        transcript.load(tmp_path / "y.json")


def test_one_chat_of_a_session_at_a_time() -> None:
    path = transcript.named("evening")
    with transcript.locked(path):
        with pytest.raises(UsageError, match="open in another kvcli"), transcript.locked(path):
            pass
        with transcript.locked(transcript.named("morning")):
            pass
    with transcript.locked(path):
        pass

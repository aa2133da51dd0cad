"""``kvcli cache``: looking at saved readings, checking them, making room."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Call, Validate
from tests.e2e.readings import POLICY, TEXT, ask, cache, saved


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def test_looking_after_the_cache(
    call: Call, tiny_model: Path, folder: Path, book: Path, shelf: Path, validate: Validate
) -> None:
    assert call("cache", "path").out == f"{shelf}\n"
    assert call("cache", "ls").out == ""
    ask(call, tiny_model, *POLICY, book, "Who?")
    ask(call, tiny_model, *POLICY, "-s", "Be brief.", book, "Who?")
    listed = call("cache", "ls", "--json").json
    validate(listed)
    one, two = (r["id"] for r in listed["readings"])
    text = call("cache", "ls")
    assert one[:10] in text.out
    assert "keydiff 200" in text.out
    assert "cache    2 " in text.err
    shown = call("cache", "show", one[:6])
    assert "Be brief." in shown.out
    assert str(book) in shown.out
    validate(call("cache", "show", one, "--json").json)
    assert call("cache", "verify").code == 0
    validate(call("cache", "verify", "--json").json)
    assert call("cache", "export", one, "book.kv").code == 0
    assert cache(ask(call, tiny_model, "book.kv", "Who?")) == "hit"
    assert call("cache", "show", "book.kv").code == 0
    assert call("cache", "rm", one).code == 0
    validate(call("cache", "rm", two, "--json").json)
    assert not saved(shelf)
    validate(call("cache", "import", "book.kv", "--json").json)
    assert saved(shelf)[0].stem == one
    assert cache(ask(call, tiny_model, *POLICY, "-s", "Be brief.", book, "Who?")) == "hit"
    damaged = saved(shelf)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert call("cache", "verify").code == 7
    assert call("cache", "show", one).code == 7
    assert "damaged" in call("cache", "ls").out
    assert call("cache", "prune").code == 0
    assert not saved(shelf)
    (folder / "bad.kv").write_bytes(b"bad")
    for args, code in (
        (("show", "f00"), 2),
        (("rm",), 2),
        (("import", "bad.kv"), 7),
        (("import", "missing.kv"), 3),
        (("prune", "--limit", "lots"), 2),
    ):
        assert call("cache", *args).code == code, args


def test_every_file_is_verified_and_named_as_it_was(call: Call, tiny_model: Path, folder: Path, book: Path) -> None:
    assert call("prefill", "-q", "-m", tiny_model, *POLICY, book, "-o", "book.kv").code == 0
    whole = (folder / "book.kv").read_bytes()
    (folder / "cut.kv").write_bytes(whole[:-1])
    (folder / "flipped.kv").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    outcome = call("cache", "verify", "cut.kv", "flipped.kv", "book.kv")
    assert outcome.code == 7
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["cut.kv", "flipped.kv", "book.kv"]
    assert outcome.out.splitlines()[2].endswith("ok")
    assert "2 of 3 " in outcome.err
    assert "kvcli cache rm" not in outcome.err
    listed = call("cache", "ls", "--json").json["readings"]
    assert call("cache", "show", "book.kv", "--json").json["reading"]["id"] == listed[0]["id"]


def test_the_limit(
    call: Call, tiny_model: Path, book: Path, shelf: Path, validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCLI_CACHE_LIMIT", "1KiB")
    answer = ask(call, tiny_model, *POLICY, book, "Who?")
    assert str(answer["err"]).count("the prefill cannot be saved") == 1
    assert "KVCLI_CACHE_LIMIT" in str(answer["warnings"])
    assert not saved(shelf)
    assert call("prefill", "-m", tiny_model, book).code == 5
    monkeypatch.setenv("KVCLI_CACHE_LIMIT", "lots")
    assert call("ask", "-m", tiny_model, book, "Who?").code == 2
    monkeypatch.setenv("KVCLI_CACHE_LIMIT", "1GiB")
    ask(call, tiny_model, *POLICY, book, "Who?")
    validate(call("cache", "prune", "--limit", "1KiB", "--json").json)
    assert not saved(shelf)


def test_the_cache_needs_no_torch(environment: dict[str, str], folder: Path) -> None:
    import sys

    (folder / "bad.kv").write_bytes(b"bad")
    code = (
        "import sys; from kvcli.cli.app import run; code = run(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]); sys.exit(code)"
    )
    for args in (["ls"], ["verify"], ["prune"], ["path"], ["rm", "--all"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "cache", *args], env=environment, cwd=folder, capture_output=True, check=True
        )
        assert done.stdout.decode().splitlines()[-1] == "[]", args

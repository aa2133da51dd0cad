"""``kvcli calibrate`` as a person uses it: made once, found by ask, its absence said aloud."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Call


@pytest.fixture
def call(call: Call, tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """With a text, a small model, and a folder of this test for what is made."""
    (folder / "book.txt").write_text("Call me Ishmael. " * 60)
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KVCLI_MODEL", str(tiny_model))
    return call


def test_made_once_and_found_by_ask(call: Call, tmp_path: Path) -> None:
    ask = ("ask", "book.txt", "Who?", "-n", "3", "--no-cache", "--policy")
    before = call(*ask, "full+infinigen(least=0)")
    assert before.code == 0
    assert "kvcli calibrate" in before.err
    refused = call(*ask, "full+infinigen(skew=file)")
    assert refused.code == 4
    assert "kvcli calibrate" in refused.err
    made = call("calibrate", "book.txt", "--tokens", "200")
    assert made.code == 0, made.err
    where = Path(made.out.strip())
    assert where.parent == tmp_path / "data" / "heads"
    assert where.stat().st_mode & 0o77 == 0
    after = call(*ask, "full+infinigen(skew=file)")
    assert after.code == 0
    assert "calibrated on book.txt, 200 tokens" in after.err


def test_a_share_map_is_made_once_and_found_by_ask(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ("ask", "book.txt", "Who?", "-n", "3", "--policy")
    refused = call(*ask, "full+kvsharer")
    assert refused.code == 4
    assert "kvcli calibrate" in refused.err
    for policy, code in (("map=1_0", 2), ("map=0_0_0_0_0_0_0_0_0", 4), ("layers=2", 2)):
        wrong = call(*ask, f"full+kvsharer({policy})")
        assert wrong.code == code
        assert len(wrong.err.strip().splitlines()) <= 2
    assert call("calibrate", "book.txt", "--share", "900").code == 2
    monkeypatch.setattr("kvcli.retaining_heads.sharing.SIMILAR", -1.0)
    made = call("calibrate", "book.txt", "--tokens", "200", "--share", "1")
    assert made.code == 0, made.err
    assert Path(made.out.strip()).parent == tmp_path / "data" / "share"
    first, second = call(*ask, "full+kvsharer"), call(*ask, "full+kvsharer")
    assert first.code == second.code == 0, first.err
    assert first.out == second.out
    assert call("plan", "book.txt", "--policy", "full+kvsharer").code == 0


def test_patterns_of_heads_are_made_once_and_found_by_ask(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("ask", "book.txt", "Who?", "-n", "3", "--policy", "full+minference(heads=file)")
    refused = call(*ask)
    assert refused.code == 4
    assert "kvcli calibrate" in refused.err
    for wrong, code in ((("--prefill", "snapkv"), 2), (("--prefill", "minference", "--share", "1"), 2)):
        assert call("calibrate", "book.txt", *wrong).code == code
    assert call("calibrate", "book.txt", "--tokens", "200", "--prefill", "minference").code == 3
    monkeypatch.setattr("kvcli.sparse_prefill.patterns.SKIPPED", 50)
    made = call("calibrate", "book.txt", "--tokens", "200", "--prefill", "minference")
    assert made.code == 0, made.err
    assert Path(made.out.strip()).parent == tmp_path / "data" / "minference"
    assert "heads · 200 tokens" in made.err
    first, second = call(*ask), call(*ask)
    assert first.code == second.code == 0, first.err
    assert first.out == second.out
    assert call("plan", "book.txt", "--policy", "full+minference(heads=file)").code == 0

"""``kvcli calibrate`` as a person uses it: made once, found by ask, its absence said aloud."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Call


def test_made_once_and_found_by_ask(
    call: Call, tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "book.txt").write_text("Call me Ishmael. " * 60)
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KVCLI_MODEL", str(tiny_model))
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

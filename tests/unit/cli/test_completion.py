"""What the shell completes, and the manual page: both come from the commands themselves."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from kvcli.chat import transcript
from kvcli.cli import completion
from kvcli.cli.app import run
from kvcli.cli.defaults import commands, options
from kvcli.cli.program import command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kvcli lo", "logs"),
        ("kvcli ask -m smollm2-1", "smollm2-135m"),
        ("kvcli ask --policy loc", "locret"),
        ("kvcli ask --policy locret+int", "locret+int8"),
        ("kvcli ask -t summ", "summary"),
        ("kvcli chat --session note", "notes-1"),
        ("kvcli ask --cov", "--covered"),
    ],
)
def test_names_are_completed(
    words: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path))
    (transcript.folder() / "notes-1.json").write_text("{}")
    monkeypatch.setenv("_KVCLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        run([])
    assert expected in capsys.readouterr().out.split()


def test_conversations_of_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "file"))
    assert completion.sessions("") == []


def test_the_manual_page_has_every_option(tmp_path: Path) -> None:
    place = Path(__file__).parents[3] / "docs" / "man.py"
    spec = importlib.util.spec_from_file_location("man", place)
    assert spec is not None
    assert spec.loader is not None
    man = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(man)
    page = man.page()
    for words, found in commands(command()):
        assert f".SH {man.escaped(' '.join(('kvcli', *words)).upper())}\n" in page
        for name in options(found):
            assert man.escaped(name) in page  # --name or --[no-]name
    assert not any(line.startswith("'") for line in page.splitlines())
    if shutil.which("groff"):
        (tmp_path / "kvcli.1").write_text(page, "utf-8")
        made = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8", tmp_path / "kvcli.1"], capture_output=True, check=True
        )
        assert b"--max-tokens" in made.stdout


def test_every_option_has_a_variable() -> None:
    """But for those with which a forgotten variable would delete everything or change ``config.toml``.

    ``KVCLI_KEEP_ALIVE`` is that of ``ask``.
    """
    for words, found in commands(command()):
        for name, param in options(found).items():
            if (words, name) in ((("cache", "rm"), "all"), (("serve",), "keep-alive")) or words == ("models", "use"):
                continue
            assert param.envvar == f"KVCLI_{name.replace('-', '_').upper()}", (words, name)

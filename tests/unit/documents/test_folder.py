"""Directories: .gitignore, hidden files, binaries, links and order."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcli.documents import Options, folder, read
from kvcli.errors import InputError, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, data in {
        ".gitignore": b"*.log\n/build/\n!keep.log\n",
        ".git/config": b"x",
        ".hidden": b"x",
        "a.py": b"a = 1\n",
        "b.log": b"no",
        "keep.log": b"yes\n",
        "build/out.py": b"no",
        "sub/.gitignore": b"local.txt\n",
        "sub/build/in.py": b"in = 1\n",
        "sub/local.txt": b"no",
        "sub/__init__.py": b"",
        "sub/logo.png": b"\x89PNG\r\n\x1a\n",
        "sub/core.dat": b"\0\1\2",
        "z.txt": "Größe\n".encode(),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "sub" / "loop").symlink_to(root)
    (root / "outside.txt").symlink_to("/etc/hostname")
    return root


def names(root: Path, **options: tuple[str, ...]) -> list[str]:
    document = read([root], None, Options(**options))
    return [str(Path(f).relative_to(root)) for f in document.files]


def test_what_git_would_show_in_the_order_of_names(tree: Path) -> None:
    assert names(tree) == ["a.py", "keep.log", "z.txt", "sub/build/in.py"]


def test_include_and_exclude(tree: Path) -> None:
    assert names(tree, include=("*.py",)) == ["a.py", "sub/build/in.py"]
    assert names(tree, include=("*.py",), exclude=("sub/",)) == ["a.py"]
    assert names(tree, exclude=("*.py", "keep.*")) == ["z.txt"]
    with pytest.raises(InputError, match="no text to read"):
        names(tree, include=("*.rs",))
    with pytest.raises(UsageError, match="chooses files of a directory"):
        read([tree / "a.py"], None, Options(include=("*.py",)))


def test_what_was_left_out_is_said(tree: Path) -> None:
    (note,) = read([tree]).notes
    for kind in (
        "hidden (",
        "binary or packed (",
        "empty (__init__.py)",
        "2 linked (outside.txt, …)",
        "3 ignored by git (build/, …)",
    ):
        assert kind in note


def test_folders_that_are_not_entered_are_left_out_by_name(tmp_path: Path) -> None:
    for name in (".git/config", ".gitignore", "build/a.txt", ".hidden/b.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("build/\n")
    (tmp_path / "up").symlink_to(tmp_path)
    document = read([tmp_path])
    assert [Path(f).name for f in document.files] == ["c.txt"]
    (note,) = document.notes
    for left in ("1 ignored by git (build/)", "2 hidden (", "1 linked (up)"):
        assert left in note


def test_rules_above_the_directory_count_within_the_repository(tree: Path) -> None:
    (tree / "sub" / "x.log").write_text("no")
    assert names(tree / "sub") == ["build/in.py"]


def test_files_and_directories_together(tree: Path) -> None:
    document = read([tree / "z.txt", tree / "sub"])
    assert [Path(f).name for f in document.files] == ["z.txt", "in.py"]
    assert document.at(document.text.index("in = 1")).file.endswith("in.py")
    assert document.line(document.text.index("in = 1")) == 1


def test_too_many_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "FILES", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        read([tree])

"""Folders of a user without a home."""

from pathlib import Path

import platformdirs
import pytest

from kvcli.errors import ResourceError
from kvcli.utils import files


@pytest.mark.parametrize(
    ("find", "variable"), [(files.cache_dir, "KVCLI_CACHE_DIR"), (files.data_dir, "KVCLI_DATA_DIR")]
)
def test_no_home_is_said_and_no_folder_called_tilde_made(find, variable, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(variable, raising=False)
    for name in ("user_cache_path", "user_data_path"):
        monkeypatch.setattr(platformdirs, name, lambda *_a, **_k: Path("~/.cache/kvcli"))
    with pytest.raises(ResourceError, match="no home directory") as found:
        find()
    assert variable in str(found.value.hint)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(variable, str(tmp_path / "given"))
    assert find() == tmp_path / "given"

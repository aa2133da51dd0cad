"""The list of transformers' classes is the one that transformers makes, and a spoiled copy on disk changes nothing."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from transformers.utils import import_utils

from kvcli.models import class_list

MODELS = Path(transformers.__file__).parent / "models"
define_anew = import_utils.define_import_structure.__wrapped__  # transformers adds to what the cached function gives


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path))
    return tmp_path / "transformers.json"


def wrapped(file: str | None = None) -> tuple[ModuleType, list[Path]]:
    """``import_utils`` with the list from the disk, and the folders for which transformers made a list."""
    module, made = ModuleType("import_utils"), []

    def define(path: Path, prefix: str | None = None) -> class_list.Structure:
        made.append(Path(path))
        found: class_list.Structure = define_anew(path, prefix=prefix)
        return found

    module.__file__ = file or import_utils.__file__
    module.define_import_structure = define  # type: ignore[attr-defined]
    class_list.keep(module)
    return module, made


@pytest.mark.parametrize("spoiled", [None, "[]", '{"of": 1}', "\x00", '{"of": [], "classes": [[1]]}'])
def test_the_list_from_the_disk_is_that_of_transformers(kept: Path, spoiled: str | None) -> None:
    if "site-packages" not in MODELS.parts:
        pytest.skip("transformers is not in a folder of installed packages")
    module, made = wrapped()
    plain = define_anew(MODELS)
    if spoiled is not None:
        kept.write_text(spoiled)
    assert module.define_import_structure(MODELS / "__init__.py") == plain  # type: ignore[attr-defined]
    assert module.define_import_structure(MODELS, prefix="models") == define_anew(MODELS, prefix="models")
    assert made == [MODELS]
    assert json.loads(kept.read_text())["of"][0] == str(MODELS)


def test_other_folders_and_another_transformers_are_read_anew(kept: Path) -> None:
    module, made = wrapped()
    llama = MODELS / "llama" / "__init__.py"
    assert module.define_import_structure(llama) == define_anew(llama)  # type: ignore[attr-defined]
    checkout, made_there = wrapped("/a/checkout/transformers/utils/import_utils.py")
    checkout.define_import_structure(MODELS)
    assert (made, made_there, kept.exists()) == ([llama], [MODELS], False)


def test_a_place_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    module, _ = wrapped()
    assert module.define_import_structure(MODELS) == define_anew(MODELS)

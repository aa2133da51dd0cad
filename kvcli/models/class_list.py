"""The list of transformers' classes, kept on disk: transformers reads its 2,000 files twice at each import to make it.

The list says which module has which class and what the class needs. It does not depend on what is installed.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from kvcli.errors import KvcliError
from kvcli.utils import files

Structure = dict[frozenset[str], dict[str, set[str]]]


def keep(import_utils: ModuleType) -> None:
    """Make ``transformers.utils.import_utils`` take the list of all models' modules from the disk, once it is there.

    A transformers that is not installed by a package manager is left alone: its files may change at any time.
    """
    models = Path(str(import_utils.__file__)).parents[1] / "models"
    if not {"site-packages", "dist-packages"}.isdisjoint(models.parts):
        compute = import_utils.define_import_structure
        import_utils.define_import_structure = lambda path, prefix=None: (  # type: ignore[attr-defined]
            _kept(models, compute, prefix)
            if Path(path) in (models, models / "__init__.py")
            else compute(path, prefix=prefix)
        )


def _kept(models: Path, compute: Callable[[Path], Structure], prefix: str | None) -> Structure:
    dot = f"{prefix}." if prefix else ""
    key = [str(models), models.stat().st_mtime_ns, sys.modules["transformers"].__version__]
    try:
        place = files.cache_dir() / "transformers.json"
    except KvcliError:  # no place to write to: the command itself says so if it needs one
        place = None
    structure = _load(place, key) if place else None
    if structure is None:
        structure = compute(models)
        if place:
            _save(place, key, structure)
    return {needs: {dot + module: names for module, names in found.items()} for needs, found in structure.items()}


def _load(place: Path, key: list[object]) -> Structure | None:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(place.read_text(encoding="utf-8"))
        if found["of"] == key:
            return {
                frozenset(needs): {module: set(names) for module, names in modules.items()}
                for needs, modules in found["classes"]
            }
    return None


def _save(place: Path, key: list[object], structure: Structure) -> None:
    classes = [
        [sorted(needs), {module: sorted(names) for module, names in found.items()}]
        for needs, found in structure.items()
    ]
    with suppress(OSError), files.atomic_write(place) as temporary:
        temporary.write_text(json.dumps({"of": key, "classes": classes}), encoding="utf-8")

"""Lines of code of each package, against the limits in ``docs/size.md``.

    python -m benchmarks.size            # print; exit code 1 if a package exceeds its limit or has none
    python -m benchmarks.size --write    # set each limit to the present size, rounded up to 50 lines
    python -m benchmarks.size --tag v1.0 # exit code 1 if the tag is not the version (for `make dist`)

A line is a line of a ``.py`` file, comments and empty lines included. Modules outside packages count as "root".
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from kvcli import __version__

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "size.md"
TREES = {"kvcli": ROOT / "kvcli", "kvcli_kernels": ROOT / "kernels" / "kvcli_kernels"}
STEP = 50
_ROW = re.compile(r"^\| `?([\w./]+)`? \| ([\d,]+) \|$", re.MULTILINE)
_HEAD = """# Size

The most lines of code that each package may have. `make size` prints the present sizes. It fails if a package
exceeds its limit. `python -m benchmarks.size --write` sets new limits, so that a reviewer sees when a package grows.
The goal for `kvcli` is 22,000 lines.

| package | lines at most |
| --- | --- |
"""


def lines(paths: list[Path]) -> int:
    """Lines of all files together."""
    return sum(path.read_bytes().count(b"\n") for path in paths)


def sizes(trees: dict[str, Path] = TREES) -> dict[str, int]:
    """Package → lines; then each tree as a whole, under its own name."""
    found = {}
    for name, tree in trees.items():
        files = sorted(tree.rglob("*.py"))
        packages = sorted({path.relative_to(tree).parts[0] for path in files if path.parent != tree})
        found[f"{name}/root"] = lines([path for path in files if path.parent == tree])
        found |= {f"{name}/{p}": lines([f for f in files if f.relative_to(tree).parts[0] == p]) for p in packages}
        found[name] = lines(files)
    return found


def limits(text: str) -> dict[str, int]:
    """Package → limit, from the table in ``docs/size.md``."""
    return {name: int(count.replace(",", "")) for name, count in _ROW.findall(text)}


def faults(found: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """One sentence for each package that exceeds its limit, has none, or has a limit and does not exist."""
    return [
        *(f"{p} has {n:,} lines, {n - allowed[p]:,} over its limit" for p, n in found.items() if n > allowed.get(p, n)),
        *(f"{p} has no limit" for p in found if p not in allowed),
        *(f"{p} has a limit and does not exist" for p in allowed if p not in found),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="set the limits to the present sizes")
    parser.add_argument("--tag", help="compare this tag with the version and do nothing else")
    options = parser.parse_args()
    if options.tag is not None:
        if options.tag not in ("", f"v{__version__}"):
            sys.exit(f"the tag {options.tag} is not the version: v{__version__}")
        return
    found = sizes()
    if options.write:
        rows = [f"| `{name}` | {-(-count // STEP) * STEP:,} |\n" for name, count in found.items()]
        TABLE.write_text(_HEAD + "".join(rows))
    allowed = limits(TABLE.read_text())
    for name, count in found.items():
        print(f"{name:<32}{count:>8,} of {allowed.get(name, 0):>7,}")
    if wrong := faults(found, allowed):
        sys.exit("\n".join([*wrong, "try: make the code smaller, or python -m benchmarks.size --write"]))


if __name__ == "__main__":
    main()

"""What a page's own style sheet hides: classes and ids that a rule of one name takes off the page.

Scripts show much of what a sheet hides: tabs, menus, whole pages. A name that any other rule shows again counts as
shown, and so does a rule for a medium that is not a screen. Rules of several names are not followed.
"""

import re
from collections.abc import Iterable, Iterator

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACE = re.compile(r"[{}]")
_NAME = re.compile(r"[.#][\w-]+")
_ALONE = re.compile(r"(?:[A-Za-z][\w-]*)?[.#][\w-]+")
_DISPLAY = re.compile(r"(?:^|;)\s*(?:display\s*:\s*(?!none)\w|visibility\s*:\s*visible)", re.IGNORECASE)
HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_SCREEN = re.compile(r"@media\s+(?:only\s+)?(?:all|screen)\s*", re.IGNORECASE)


def hidden(sheets: Iterable[str]) -> frozenset[str]:
    """Selectors (``.name``, ``#name``, ``p.name``) of what no rule of the sheets shows."""
    found, shown = set[str](), set[str]()
    for sheet in sheets:
        for selectors, declarations, always in _rules(_COMMENT.sub(" ", sheet)):
            if HIDDEN.search(declarations):
                if always:
                    found |= {each.strip() for each in selectors.split(",") if _ALONE.fullmatch(each.strip())}
            elif _DISPLAY.search(declarations):
                shown |= set(_NAME.findall(selectors))
    return frozenset(each for each in found if shown.isdisjoint(_NAME.findall(each)))


def _rules(sheet: str) -> Iterator[tuple[str, str, bool]]:
    """Selectors and declarations of each rule, and whether it holds on any screen."""
    around: list[bool] = []  # of the rules with rules in them: whether they hold on any screen
    at, prelude = 0, ""
    for brace in _BRACE.finditer(sheet):
        text = sheet[at : brace.start()].rpartition(";")[2] if brace[0] == "{" else sheet[at : brace.start()]
        at = brace.end()
        if brace[0] == "{":
            if prelude:  # a rule in a rule
                around.append(False)
            prelude = text.strip()
            if prelude.startswith("@"):
                around.append(bool(_SCREEN.fullmatch(prelude)))
                prelude = ""
        elif prelude:
            yield prelude, text, all(around)
            prelude = ""
        elif around:
            around.pop()

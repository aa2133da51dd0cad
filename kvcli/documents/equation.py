"""Equations on one line: OMML and MathML in the linear notation of Unicode Technical Note 28 (``(a+b)/2``, ``x^2``).

A formula is its tag, its attributes and its parts, which are formulas and texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

DEPTH = 64
"""Levels of a formula that are told apart; deeper ones are only their text."""


class Formula(NamedTuple):
    """An element of OMML or MathML without its prefix."""

    tag: str
    attributes: Mapping[str, str]
    parts: list[Formula | str]


_SIGN = {  # parts in front of which a sign stands: fraction, subscript, superscript
    "f": "/", "mfrac": "/",
    "sSub": "_", "msub": "_", "limLow": "_", "munder": "_",
    "sSup": "^", "msup": "^", "limUpp": "^", "mover": "^",
}  # fmt: skip
_TWICE = frozenset(("sSubSup", "msubsup", "munderover"))
_SILENT = frozenset(("annotation", "annotation-xml", "mphantom", "mspace", "maligngroup", "malignmark", "none"))
_ROWS = frozenset(("m", "mtable", "eqArr"))


def linear(formula: Formula | str, depth: int = 0) -> str:
    """The formula on one line, with every character it shows."""
    if isinstance(formula, str):
        return formula
    tag = formula.tag
    if depth > DEPTH:
        return _text(formula)
    if tag in _SILENT or tag.endswith("Pr"):
        return ""
    inner = [p for p in formula.parts if isinstance(p, str) or not (p.tag.endswith("Pr") or p.tag in _SILENT)]
    if tag not in ("mi", "mn", "mo", "mtext", "ms", "t", "r"):  # of the others blanks between parts mean nothing
        inner = [p for p in inner if not isinstance(p, str) or p.strip()]
    shown = [linear(p, depth + 1) for p in inner]
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        return "".join(shown).strip()
    if tag in _SIGN and len(shown) == 2:
        if tag == "mover" and len(shown[1]) == 1 and not shown[1].isalnum():
            return _group(shown[0]) + shown[1]
        return _group(shown[0]) + _SIGN[tag] + _group(shown[1])
    if tag in _TWICE and len(shown) == 3:
        return _group(shown[0]) + _attached(shown[1], shown[2])
    if tag == "sPre" and len(shown) == 3:
        return _attached(shown[0], shown[1]) + _group(shown[2])
    if tag in ("rad", "mroot") and len(shown) == 2:
        degree, base = shown if tag == "rad" else shown[::-1]
        return f"√({degree}&{base})" if degree else f"√({base})"
    if tag == "msqrt" or (tag == "rad" and shown):
        return f"√({''.join(shown)})"
    if tag == "nary":
        sub, sup, base = _named(formula, "sub", depth), _named(formula, "sup", depth), _named(formula, "e", depth)
        return _property(formula, "chr", "∫") + _attached(sub, sup) + " " + base
    if tag in ("d", "mfenced"):
        first = _property(formula, "begChr", formula.attributes.get("open", "("))
        last = _property(formula, "endChr", formula.attributes.get("close", ")"))
        between = _property(formula, "sepChr", "|" if tag == "d" else formula.attributes.get("separators", ",")[:1])
        return first + between.join(shown) + last
    if tag == "acc":
        return _group("".join(shown)) + _property(formula, "chr", "\u0302")
    if tag == "func":
        return " ".join(s for s in shown if s)
    if tag in _ROWS:
        return "[" + "; ".join(shown) + "]" if tag != "eqArr" else "; ".join(shown)
    if tag in ("mr", "mtr", "mlabeledtr"):
        return ", ".join(shown)
    return "".join(shown)


def _text(formula: Formula) -> str:
    """All text below, without recursion."""
    found: list[str] = []
    stack: list[Formula | str] = [formula]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif item.tag not in _SILENT:
            stack.extend(reversed(item.parts))
    return "".join(found)


def _group(text: str) -> str:
    """In parentheses if it is more than one number, word or group."""
    text = text.strip()
    if re.fullmatch(r"\w*|[^\w\s]", text) or (text[:1] == "(" and _closes(text)):
        return text
    return f"({text})"


def _closes(text: str) -> bool:
    """Whether the parenthesis that begins ``text`` ends with it."""
    level = 0
    for i, c in enumerate(text):
        level += (c == "(") - (c == ")")
        if not level:
            return i == len(text) - 1
    return False


def _attached(sub: str, sup: str) -> str:
    return (f"_{_group(sub)}" if sub.strip() else "") + (f"^{_group(sup)}" if sup.strip() else "")


def _named(formula: Formula, tag: str, depth: int) -> str:
    return "".join(linear(p, depth + 1) for p in formula.parts if isinstance(p, Formula) and p.tag == tag)


def _property(formula: Formula, name: str, default: str) -> str:
    """A character that OMML keeps in ``naryPr``, ``dPr`` or ``accPr``."""
    for part in formula.parts:
        if isinstance(part, Formula) and part.tag.endswith("Pr"):
            for item in part.parts:
                if isinstance(item, Formula) and item.tag == name:
                    return item.attributes.get("val", "")
    return default


def mathml(node: Any) -> Formula:
    """A MathML element of selectolax as a formula."""
    top = Formula(node.tag, {k: v or "" for k, v in node.attributes.items()}, [])
    stack = [(node.child, top)]
    while stack:
        child, above = stack.pop()
        if child is None:
            continue
        stack.append((child.next, above))
        if child.tag == "-text":
            above.parts.append(re.sub(r"[ \t\n\r\f]+", " ", child.text_content or ""))
        else:
            inner = Formula(child.tag, {k: v or "" for k, v in child.attributes.items()}, [])
            above.parts.append(inner)
            stack.append((child.child, inner))
    return top

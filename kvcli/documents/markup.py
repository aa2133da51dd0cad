"""HTML as a parser may see it: whatever a file holds, the tree of it is shallow and is built in linear time.

The rules of HTML let a short file make a huge tree. Open formatting elements (``<b>``) are opened anew in every
paragraph, and unclosed elements nest without end. Each end tag looks through all that are open. Here the tags are read
once. Formatting that shows nothing goes, elements deeper than :data:`DEPTH` become line breaks, and every element that
is closed has been opened. Of XHTML, CDATA and elements that close themselves are rewritten for HTML.
"""

import re
from collections import Counter
from html import escape

DEPTH = 256
"""Elements in each other; browsers stop at 512."""

LOOK = 16
"""Open elements looked through for the list item that a new one ends."""

LONG = 512
"""Characters of attributes from which only those that are needed are kept."""

VOID = frozenset(
    re.findall(
        r"\S+",
        "area base br col embed hr img input link meta param source track wbr frame basefont bgsound",
    )
)

_S = r"[\t\n\f\r ]"
_TAG = re.compile(
    rf"<(/?)([A-Za-z][^\t\n\f\r />]*+)"
    rf"((?:[\t\n\f\r /]++|[^\t\n\f\r />][^\t\n\f\r />=]*+"
    rf"(?:{_S}*+={_S}*+(?:\"[^\"]*+\"|'[^']*+'|(?![\"'])[^\t\n\f\r >]*+))?+)*+)>"
)
_ATTRIBUTE = re.compile(
    rf"([^\t\n\f\r />][^\t\n\f\r />=]*+)(?:{_S}*+={_S}*+(\"[^\"]*+\"|'[^']*+'|(?![\"'])[^\t\n\f\r >]*+))?+"
)
_MEDIA = re.compile(rf"media{_S}*+={_S}*+[\"']?([^\"'>]*+)", re.IGNORECASE)
_NEEDED = frozenset(
    re.findall(
        r"\S+",
        "hidden style role class id title type value checked selected start reversed open srcdoc epub:type "
        "aria-label colspan rowspan shadowrootmode open close separators",
    )
)
_PLAIN = frozenset(re.findall(r"\S+", "b big code em font i nobr small strong tt u a"))  # shown as their text
_TELLING = re.compile(r"hidden|style|role|epub:type|headerlink|anchor", re.IGNORECASE)
_RENAMED = {  # strike is not formatting as del is not; parsers look through all options at each one
    "s": "del",
    "strike": "del",
    "select": "x-select",
    "option": "x-option",
    "optgroup": "x-optgroup",
}
_RAW = frozenset(["script", "style", "title", "iframe", "noembed", "noframes", "textarea", "xmp"])
_ONCE = frozenset(["html", "head", "body"])
_CLOSES = {  # what a start tag ends, if it is open
    "li": frozenset(["li"]),
    "dt": frozenset(["dt", "dd"]),
    "dd": frozenset(["dt", "dd"]),
    "x-option": frozenset(["x-option"]),
    "x-optgroup": frozenset(["x-option", "x-optgroup"]),
    **dict.fromkeys(("rb", "rt", "rtc", "rp"), frozenset(["rb", "rt", "rp"])),
}
_BARRIER = frozenset(re.findall(r"\S+", "ul ol menu dl table td th section article div x-select ruby"))
_FREE = frozenset(
    re.findall(r"\S+", "p tr td th tbody thead tfoot caption colgroup")
)  # cannot nest without a counted one
_INLINE = frozenset(
    re.findall(
        r"\S+",
        "span label sup sub q cite abbr del ins mark var kbd samp time bdo bdi data dfn output acronym ruby",
    )
)


def tidied(text: str, *, xhtml: bool = False, sheets: list[str] | None = None) -> str:
    """``text`` with the same words, in the same order, and a tree of at most about ``DEPTH`` levels.

    Its style sheets, which are no words, are added to ``sheets``.
    """
    tidy = _Tidy(text, xhtml)
    shown = tidy.run()
    if sheets is not None:
        sheets += tidy.sheets
    return shown


class _Tidy:
    def __init__(self, text: str, xhtml: bool) -> None:
        self.text = text
        self.xhtml = xhtml
        self.out: list[str] = []
        self.stack: list[str] = []
        self.open: Counter[str] = Counter()
        self.kept: dict[str, list[str]] = {}  # of tags that may go: what each open one became
        self.seen: set[str] = set()
        self.sheets: list[str] = []

    def run(self) -> str:
        text, out, at = self.text, self.out, 0
        while (start := text.find("<", at)) >= 0:
            out.append(text[at:start])
            match = _TAG.match(text, start)
            if match is not None:
                at = self._tag(match)
            elif text.startswith("<!--", start):
                at = self._comment(start)
            elif self.xhtml and text.startswith("<![CDATA[", start):
                end = text.find("]]>", start)
                end = len(text) if end < 0 else end
                out.append(escape(text[start + 9 : end], quote=False))
                at = end + 3
            elif text.startswith(("<!", "<?", "</"), start):
                at = self._bogus(start)
            elif text[start + 1 : start + 2].isalpha() and text[start + 1] < "\x7f":
                return "".join(out)  # a tag that never ends
            else:
                out.append("&lt;")
                at = start + 1
        out.append(text[at:])
        return "".join(out)

    def _comment(self, start: int) -> int:
        if match := re.compile("<!---?>").match(self.text, start):
            return match.end()
        match = re.compile("--!?>").search(self.text, start + 4)
        return match.end() if match else len(self.text)

    def _bogus(self, start: int) -> int:
        """Behind a doctype, a processing instruction or what browsers take for a comment."""
        close = "?>" if self.xhtml and self.text.startswith("<?", start) else ">"
        end = self.text.find(close, start)
        bracket = self.text.find("[", start, end) if self.xhtml and self.text.startswith("<!", start) else -1
        if bracket >= 0:  # entities that a file declares for itself
            inner = self.text.find("]", bracket)
            end = self.text.find(">", inner) if inner >= 0 else -1
        return end + len(close) if end >= 0 else len(self.text)

    def _tag(self, match: re.Match[str]) -> int:
        name, attributes = match[2].lower(), match[3]
        if match[1]:
            self._end(name)
            return match.end()
        if len(attributes) > LONG:
            attributes = _short(attributes)
        if name in _RAW:
            return self._raw(name, attributes, match)
        if name == "plaintext":
            self.out.append("<pre>" + escape(self.text[match.end() :], quote=False))
            return len(self.text)
        self._start(name, attributes)
        return match.end()

    def _raw(self, name: str, attributes: str, match: re.Match[str]) -> int:
        """An element whose content is no markup; what shows nothing goes."""
        if attributes.endswith("/") and (self.xhtml or self.open["svg"]):
            return match.end()
        close = re.compile(rf"</{name}(?=[\t\n\f\r />])", re.IGNORECASE).search(self.text, match.end())
        end = close.start() if close else len(self.text)
        body = self.text[match.end() : end]
        if name == "textarea":
            self.out.append(f"<textarea{attributes}>" + body.replace("<", "&lt;") + "</textarea>")
        elif name == "xmp":
            self.out.append("<pre>" + escape(body, quote=False) + "</pre>")
        elif name == "style":
            media = _MEDIA.search(match[3])
            self.sheets.append(f"@media {media[1]} {{{body}}}" if media else body)
        elif name == "iframe":
            self.out.append(f"<iframe{attributes}></iframe>")
        closed = self.text.find(">", end)
        return closed + 1 if closed >= 0 else len(self.text)

    def _start(self, name: str, attributes: str) -> None:
        if name in _ONCE:
            if name in self.seen:
                return
            self.seen.add(name)
            self.out.append(f"<{name}{attributes}>")
            return
        closed = attributes.endswith("/")
        if name in VOID or name == "image":
            self.out.append(f"<{name}{attributes}>")
            return
        if name in _PLAIN or name == "template":
            name = self._changed(name, attributes)
            if not name:
                return
        name = _RENAMED.get(name, name)
        if closed and self.xhtml:
            self.out.append(f"<{name}{attributes[:-1]}></{name}>")
            return
        if closed and (self.open["svg"] or self.open["math"]):
            self.out.append(f"<{name}{attributes}>")
            return
        if name in _CLOSES:
            self._close_before(_CLOSES[name])
        if len(self.stack) >= DEPTH and name not in _INLINE:
            self.out.append("<br>")
        if name not in _FREE:
            if len(self.stack) >= DEPTH:
                return
            self.stack.append(name)
            self.open[name] += 1
        self.out.append(f"<{name}{attributes}>")

    def _changed(self, name: str, attributes: str) -> str:
        """What a formatting element or template becomes: nothing, or one that nests like any other."""
        if name == "template":
            new = "x-shadow" if "shadowrootmode" in attributes.lower() else "template"
        else:
            new = f"x-{name}" if _TELLING.search(attributes) else ""
        self.kept.setdefault(name, []).append(new)
        return new

    def _close_before(self, names: frozenset[str]) -> None:
        for i in range(len(self.stack) - 1, max(-1, len(self.stack) - 1 - LOOK), -1):
            if self.stack[i] in names:
                self._close(i)
                return
            if self.stack[i] in _BARRIER:
                return

    def _end(self, name: str) -> None:
        if name in _FREE:
            self.out.append(f"</{name}>")
            return
        if name == "br":
            self.out.append("<br>")
            return
        if name in _PLAIN or name == "template":
            kept = self.kept.get(name)
            name = kept.pop() if kept else ""
        name = _RENAMED.get(name, name)
        if not self.open[name]:
            return
        i = len(self.stack) - 1
        while self.stack[i] != name:
            i -= 1
        self._close(i)

    def _close(self, i: int) -> None:
        """End the elements from the ``i``-th on."""
        for name in reversed(self.stack[i:]):
            self.out.append(f"</{name}>")
            self.open[name] -= 1
        del self.stack[i:]


def _short(attributes: str) -> str:
    """The attributes that are needed, each once."""
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(attributes):
        if match[1].lower() in _NEEDED:
            found.setdefault(match[1].lower(), match[0])
    return "".join(f" {a}" for a in found.values()) + ("/" if attributes.endswith("/") else "")

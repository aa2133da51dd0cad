"""Questions, answers and their citations as one Markdown or HTML text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = (
    "body{max-width:45em;margin:2em auto;padding:0 1em;font-family:sans-serif;line-height:1.5}"
    "blockquote{margin:1.5em 0 .5em;padding-left:1em;border-left:3px solid #888;white-space:pre-wrap}"
    "ol{font-size:.85em;list-style:none;padding-left:1em}"
)


@dataclass(frozen=True)
class Section:
    """A question, its answer, and its citations as lines."""

    question: str
    answer: str
    sources: tuple[str, ...] = ()


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The sections under a heading; questions as block quotes, citations as a list."""
    parts = [f"# {title}"]
    for section in sections:
        parts += ["\n".join(f"> {line}".rstrip() for line in section.question.splitlines()), section.answer]
        if section.sources:
            parts.append("\n".join(f"- {line}" for line in section.sources))
    return "\n\n".join(parts) + "\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The sections as one HTML page without scripts or external links."""
    from html import escape

    body = list[str]()
    for section in sections:
        body.append(f"<blockquote>{escape(section.question)}</blockquote>\n{_rendered(section.answer)}")
        if section.sources:
            items = "".join(f"<li>{escape(line)}</li>\n" for line in section.sources)
            body.append(f"<ol>\n{items}</ol>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _rendered(text: str) -> str:
    """Markdown as HTML; tags and addresses of the text stay text."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    return str(markdown.render(text))

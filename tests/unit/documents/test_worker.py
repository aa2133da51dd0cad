"""The process of the readers: what dies, hangs or grows in it is one clear error, and the next file is read."""

from __future__ import annotations

import sys

import pytest

from kvcli.documents import worker
from kvcli.documents.document import Options, Source
from kvcli.errors import InputError
from tests.unit.documents.makers import docx, epub, paragraph

HOSTILE = """
import sys, types, os
sys.path[:] = {path!r}
from kvcli.documents import isolated, worker
def crash(source): os.abort()
def loop(source):
    while True: pass
def grow(source): bytearray(1 << 40)
def sleep(source): __import__("time").sleep(60)
for f in (crash, loop, grow, sleep):
    sys.modules["kvcli.documents." + f.__name__] = module = types.ModuleType(f.__name__)
    module.extract = f
worker.WORK = 1
worker.main()
"""


class Hostile(worker.ReaderProcess):
    """A process with readers that misbehave, and a second of time."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", HOSTILE.format(path=sys.path)]


PAGE = Source(b"<p>read</p>", "a.html", "a.html")


@pytest.mark.parametrize(
    ("reader", "said"), [("crash", "broke off"), ("loop", "seconds of processor time"), ("grow", "GiB of memory")]
)
def test_a_reader_that_misbehaves_is_one_error_and_the_next_file_is_read(reader: str, said: str) -> None:
    with Hostile() as own:
        assert own.extract("html", PAGE).parts[0].text == "read\n"
        with pytest.raises(InputError, match=rf"^bad\.x.*{said}") as caught:
            own.extract(reader, Source(b"x", "bad.x", "bad.x"))
        assert caught.value.hint
        assert own.extract("html", PAGE).parts[0].text == "read\n"
        assert own.starts == 2


def test_a_reader_that_waits_is_stopped() -> None:
    with Hostile() as own, pytest.raises(InputError, match="cannot be read"):
        own.extract("sleep", Source(b"x", "bad.x", "bad.x"), silence=0.5)


def test_many_files_take_one_process() -> None:
    files = {"docx": docx(paragraph("one")), "epub": epub({"a.xhtml": "<p>two</p>"}), "html": b"<p>three</p>"}
    with worker.ReaderProcess() as own:
        texts = [own.extract(k, Source(d, f"a.{k}", "a")).parts[0].text for k, d in files.items()]
        assert texts == ["one\n", "two\n", "three\n"]
        assert own.starts == 1
        process = own.process
    assert process is not None
    assert process.returncode is not None


def test_all_that_a_reader_says_comes_through() -> None:
    """Pages, labels, sections, notes and warnings, and letters that JSON has to write as two."""
    body = '<h1>\U0001d465</h1><p><span role="doc-pagebreak" title="iv"></span>One</p><img><p>two</p>'
    source = Source(epub({"a.xhtml": body}, spine=["a.xhtml", "x"]), "a.epub", "a.epub", Options(pages=((1, None),)))
    from kvcli.documents import epub as reader

    with worker.ReaderProcess() as own:
        assert own.extract("epub", source) == reader.extract(source)

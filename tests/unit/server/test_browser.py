"""The page in a real browser. Skipped without ``pip install playwright`` and a Chromium on the path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.server.conftest import TEXT, Running, Start
from tests.unit.server.test_page import HOSTILE, paper

TOKEN = "s3cret"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
PATIENCE = 120_000
QUIET = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
QUIET += ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium refuses to run as root with it


@pytest.fixture(scope="module")
def locked(start: Start) -> Iterator[Running]:
    with start(token=TOKEN) as running:
        yield running


@pytest.fixture
def page(locked: Running) -> Iterator[Any]:
    """A page of 360 pixels in the dark; nothing may go wrong in it, and the token may be in no address."""
    wrong, addresses = list[str](), list[str]()
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(locked.url + "/")
        page.get_by_label("Token of this server").fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_text("Drop files here").wait_for()
        yield page
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert width <= 360
    assert [text for text in wrong if "401" not in text] == []  # the first request has no token
    assert all(address.startswith((locked.url, "blob:", "data:")) and TOKEN not in address for address in addresses)


def ask(page: Any, question: str) -> Any:
    page.get_by_label("Question (Enter").fill(question)
    page.keyboard.press("Enter")
    answer = page.locator("article").last
    answer.get_by_text("of the prompt were read before").wait_for()
    return answer


def test_a_document_is_dropped_read_and_asked_and_its_text_is_text(page: Any) -> None:
    file = {"name": "<img src=x onerror=alert(2)>.txt", "mimeType": "text/plain", "buffer": HOSTILE.encode()}
    page.locator("#choose").set_input_files([file])
    page.get_by_text("tokens read").wait_for()
    page.get_by_text("without eviction").wait_for()
    assert page.locator("#files img").count() == page.locator("script").count() - 1 == 0
    answer = ask(page, "What is <b>red</b> & bold?")
    assert answer.locator(".question").text_content() == "What is <b>red</b> & bold?"
    assert answer.locator(".answer").text_content()
    answer.locator("button.link").first.focus()
    page.keyboard.press("Enter")
    mark = page.locator("dialog mark")
    mark.wait_for()
    assert mark.text_content() in HOSTILE
    assert page.locator("dialog img, dialog b, dialog script").count() == 0
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    ask(page, "And what is blue?")
    assert page.locator("article").count() == 2
    page.get_by_text("New conversation").click()
    assert page.locator("article").count() == 0


def test_a_source_in_a_pdf_is_shown_as_its_page(page: Any) -> None:
    data = paper("The meeting begins at noon.", "Tea is served in the town hall.")
    page.locator("#choose").set_input_files([{"name": "m.pdf", "mimeType": "application/pdf", "buffer": data}])
    page.locator("li[id^=file-]", has_text="m.pdf").locator(":checked").wait_for()
    page.locator("#reading").get_by_text("tokens read").wait_for()
    answer = ask(page, "Where is the tea served?")
    answer.locator("button.link", has_text="p. 2").first.click()
    page.locator("dialog img").wait_for()
    assert page.locator("dialog img").evaluate("img => img.decode().then(() => img.naturalWidth)") > 300
    assert "Tea is served" in page.locator("dialog mark").text_content()
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Remove m.pdf").click()
    page.locator("li[id^=file-]", has_text="m.pdf").wait_for(state="detached")


def test_two_documents_are_one_reading_with_a_conversation_of_their_own(page: Any) -> None:
    """By keyboard alone, after the files are chosen; in light colours too."""
    first = {"name": "sea.txt", "mimeType": "text/plain", "buffer": TEXT.encode()}
    data = paper("The meeting begins at noon.", "Tea is served in the town hall.")
    page.locator("#choose").set_input_files([first, {"name": "n.pdf", "mimeType": "application/pdf", "buffer": data}])
    sea, paper_box = (
        page.locator("li[id^=file-]", has_text=name).get_by_role("checkbox") for name in ("sea.txt", "n.pdf")
    )
    page.locator("li[id^=file-]", has_text="n.pdf").locator(":checked").wait_for()
    assert sea.is_checked()
    page.locator(".strip").wait_for()
    heights = page.locator(".strip span").evaluate_all("bars => bars.map(bar => bar.clientHeight)")
    assert len(heights) == 60
    assert max(heights) > min(heights)
    assert "of each part" in page.locator(".strip").get_attribute("aria-label")
    answer = ask(page, "Where is the tea served?")
    answer.locator("button.link", has_text="n.pdf, p. 2").first.press("Enter")
    page.locator("dialog img").wait_for()
    assert "Tea is served" in page.locator("dialog mark").text_content()
    page.keyboard.press("Escape")
    paper_box.press("Space")
    assert not paper_box.is_checked()
    assert page.locator("article").count() == 0  # other documents, another conversation
    paper_box.press("Space")
    assert page.locator("article").count() == 1
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"
    page.get_by_label("Remove n.pdf").press("Enter")
    page.locator("li[id^=file-]", has_text="n.pdf").wait_for(state="detached")
    assert page.locator("article").count() == 0


def test_an_answer_is_stopped(page: Any) -> None:
    file = {"name": "long.txt", "mimeType": "text/plain", "buffer": (TEXT * 4).encode()}
    page.locator("#choose").set_input_files([file])
    page.locator("li[id^=file-]", has_text="long.txt").locator(":checked").wait_for()
    page.get_by_label("Question (Enter").fill("Who?")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Stop").click()
    page.locator("article").get_by_text("stopped").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()

"""Fixtures of the browser tests; skipped, with a reason, where there is no playwright or no Chromium.

Playwright's event loop runs in the test's own thread, so browser and server end with each file.
"""

import os
from pathlib import Path

import pytest
from lab import Lab, Server, browser_path, launch, watch


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `test`)")
    if browser_path() is None:
        pytest.skip("no Chromium here: install one, or name it in CILKIT_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = launch(playwright)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    """Where pictures are kept: `CILKIT_SCREENSHOTS`, else a temporary folder."""
    named = os.environ.get("CILKIT_SCREENSHOTS")
    folder = Path(named).absolute() if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with Server(tmp_path_factory.mktemp("lab")) as started:
        yield started


@pytest.fixture
def lab(server, browser, screenshots):
    """A `Lab`; a test fails that leaves an error of a page, or a request to another machine, behind."""
    opened = Lab(server, browser, screenshots)
    yield opened
    assert opened.close() == []


@pytest.fixture
def page_of(browser):
    """`page_of(path, width=1280, dark=False)` -> a page that shows the file at `path` as it lies on disk."""
    opened = []

    def show(path, *, width=1280, height=900, dark=False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        opened.append((page, watch(page)))
        page.goto(path.as_uri())
        return page

    yield show
    troubles = [trouble for _, found in opened for trouble in found]
    for page, _ in opened:
        page.context.close()
    assert troubles == []

"""A gallery in a real JupyterLab: by mouse and by keyboard alone, with what stands in the file afterwards."""

import json
import time

import pytest
from accessible import findings, tab_stops

pytestmark = pytest.mark.slow

SET = """
import numpy as np
import cilkit
from cilkit.data.imagesets import ImageSet
from cilkit.synthesis import curation, glyphs

pixels, labels = glyphs.render_set(["digit one", "digit eight", "heart"], 100, seed=0)
images = ImageSet.from_arrays(pixels, labels, ["one", "<b onmouseover=alert(1)>eight</b> $x$", "heart"])
scores = curation.scores(images)
"""
SHOW = """view = cilkit.gallery(images, scores, decisions={file!r}, reviewer="Ada", benchmark=images, sort="sharpness")
view"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def opened(lab, file):
    notebook = lab.open([SET, SHOW.format(file=str(file))])
    notebook.run_all()
    assert notebook.errors() == []
    notebook.page.wait_for_selector(".ckg-tile")
    return notebook


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_lines(file, number: int) -> list[dict]:
    end = time.monotonic() + 10
    while len(lines(file)) < number:
        assert time.monotonic() < end, f"{len(lines(file))} lines, expected {number}"
        time.sleep(0.02)
    return lines(file)


def ids(page) -> list[str]:
    return [alt.rpartition(", ")[2] for alt in page.eval_on_selector_all(".ckg-tile img", "all => all.map(x => x.alt)")]


def said(page, text: str) -> None:
    page.wait_for_function("(text) => document.querySelector('.ckg').innerText.includes(text)", arg=text)


def turned(page, number: int) -> float:
    """Seconds from a click on "Next page" until the last picture of that page is there."""
    begun = time.monotonic()
    page.get_by_role("button", name="Next page").click()
    said(page, f"Page {number} of 5: images {60 * number - 59} to {60 * number} of 300")
    page.wait_for_function("() => [...document.querySelectorAll('.ckg-tile img')].every((x) => x.naturalWidth > 0)")
    return time.monotonic() - begun


def test_by_mouse(opened, file):
    page = opened.page
    first = ids(page)
    assert len(first) == 60 and page.locator(".ckg-tile b").count() == 0
    assert any("<b onmouseover=alert(1)>" in text for text in page.locator(".ckg-name").all_inner_texts())
    page.locator(".ckg-tile").nth(2).hover()
    page.locator(".ckg-tile").nth(2).locator(".ckg-reject").click()
    assert wait_for_lines(file, 1)[0] | {"when": ""} == {
        "image_id": first[2], "decision": "reject", "by": "Ada", "why": "", "when": ""
    }  # fmt: skip
    said(page, "✗ rejected by Ada")
    page.get_by_label("Reason to reject").fill("two of <them>")
    page.locator(".ckg-tile").nth(4).click()
    page.locator(".ckg-tile").nth(7).click(modifiers=["Shift"])
    page.get_by_role("button", name="Reject (r)").first.click()
    found = wait_for_lines(file, 5)[1:]
    assert [line["image_id"] for line in found] == first[4:8] and {line["why"] for line in found} == {"two of <them>"}
    said(page, "5 of 300 decided: 0 accepted, 5 rejected")
    opened.screenshot("gallery_decided")
    assert min(turned(page, number) for number in (2, 3, 4)) < 1, "seconds; 0.3 on a machine that does nothing else"
    assert not set(ids(page)) & set(first)
    page.get_by_label("Decision", exact=True).select_option("rejected")
    said(page, "Page 1 of 1: images 1 to 5 of 5")
    assert ids(page) == [first[k] for k in (2, 4, 5, 6, 7)]
    assert findings(page, ".ck") == []


def test_many_at_once_and_undo(opened, file):
    page = opened.page
    page.locator(".ckg-tile").first.click()
    page.get_by_role("button", name="Accept (a)").first.click()
    wait_for_lines(file, 1)
    page.get_by_label("Class", exact=True).select_option("heart")
    said(page, "of 100")
    page.get_by_text("Many at once").click()
    page.get_by_label("all with").select_option("sharpness")
    page.get_by_label("than").fill("30")
    page.get_by_role("button", name="Count them").click()
    said(page, "Nothing is done yet")
    button = page.locator(".ckg-strong")
    number = int(button.inner_text().split()[1])
    assert number > 5 and len(lines(file)) == 1
    opened.screenshot("gallery_bulk")
    button.click()
    found = wait_for_lines(file, 1 + number)[1:]
    assert {(line["decision"], line["why"]) for line in found} == {("reject", "sharpness < 30")}
    page.get_by_role("button", name="Undo (u)").first.click()
    found = wait_for_lines(file, 1 + 2 * number)[1 + number :]
    assert {line["decision"] for line in found} == {"withdrawn"}
    said(page, "1 of 300 decided")


def test_by_keyboard_alone(opened, file):
    page = opened.page
    first = ids(page)
    page.get_by_label("Order", exact=True).focus()
    stops = tab_stops(page, 16, ".ck")
    assert all(stop["ring"] for stop in stops) and len({stop["text"] for stop in stops}) > 12
    for _ in range(40):
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("1")
    assert [(x["image_id"], x["decision"], x["why"]) for x in wait_for_lines(file, 2)] == [
        (first[0], "accept", ""), (first[2], "reject", "wrong class")
    ]  # fmt: skip
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("r")
    assert [x["image_id"] for x in wait_for_lines(file, 4)[2:]] == first[3:5]
    page.keyboard.press("u")
    assert [x["decision"] for x in wait_for_lines(file, 6)[4:]] == ["withdrawn"] * 2
    page.keyboard.press("Enter")
    page.wait_for_selector(".ckg-look[open] .ckg-figures figure")
    opened.screenshot("gallery_zoom")
    assert findings(page, ".ck") == []
    page.keyboard.press("a")
    wait_for_lines(file, 7)
    page.keyboard.press("Escape")
    page.wait_for_selector(".ckg-look:not([open])", state="attached")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "option"
    page.keyboard.press("n")
    said(page, "Page 2 of 5")
    page.keyboard.press("p")
    said(page, "Page 1 of 5")
    page.keyboard.press("?")
    page.wait_for_selector(".ckg-help:not([hidden])")
    assert len(opened.model()["cells"]) == 2, "no key reached Lab's own commands"


def test_after_a_restart_the_view_says_so_and_the_file_knows(opened, file):
    page = opened.page
    page.locator(".ckg-tile").first.click()
    page.keyboard.press("r")
    wait_for_lines(file, 1)
    opened.restart_kernel()
    said(page, "run the cell again")
    opened.run_all()
    said(page, "1 of 300 decided: 0 accepted, 1 rejected")
    saved = opened.save()
    assert saved.stat().st_size < 500_000
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        opened.theme(theme)
        page.locator(".ckg").scroll_into_view_if_needed()
        assert findings(page, ".ck") == []
        opened.screenshot(f"gallery_{theme.split()[1].lower()}")

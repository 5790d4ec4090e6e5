"""The site as a reader meets it: light and dark, wide and narrow, by keyboard, with hostile texts in every place."""

import pytest
from accessible import findings, tab_stops
from made_site import HOSTILE, SEEN, build

WIDTHS = {"wide": 1280, "narrow": 390}
SCREENS = [(width, dark) for width in WIDTHS for dark in (False, True)]
PAGES = ["index", "leaderboard", "sweep-small", "04_slca", "05_generative_replay", "04_slca-bad", "04_slca-later"]
PLAIN = "a plain word"


@pytest.fixture(scope="module", params=[pytest.param(PLAIN, id="plain"), pytest.param(HOSTILE, id="hostile")])
def made(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("site"), request.param), request.param


def _too_wide(page):
    """By how many pixels the page itself scrolls sideways, and what sticks out."""
    return page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const out = [...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > width + 1
            && !e.closest('.wide, pre, .input_area, .output pre'));
          const names = out.slice(0, 3).map((e) => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`);
          return [document.documentElement.scrollWidth - width, names];
        }"""
    )


@pytest.mark.slow
def test_the_judge_of_pages_sees_what_is_wrong(page_of, tmp_path):
    bad = """<!doctype html><title>t</title><body style="background:#fff">
    <p style="color:#767676">4.54</p><p style="color:#777">4.48</p><p style="color:#949494;font-size:24px">3.03</p>
    <div style="background:#000"><p style="color:#fff;opacity:.4">faint</p></div>
    <img src="data:," ><img src="data:," alt=""><button></button><button aria-label="named"></button>
    <label>field <input></label><input><a href="#x" tabindex="-1">skipped</a><p hidden style="color:#fff">unseen</p>"""
    (tmp_path / "bad.html").write_text(bad)
    page = page_of(tmp_path / "bad.html")
    found = findings(page)
    assert [line.split(":")[0] for line in found] == [
        *("contrast 4.48, not 4.5", "contrast 3.66, not 4.5", "a picture without words", "no name", "no name"),
        "not reached by Tab",
    ]
    assert [stop["tag"] for stop in tab_stops(page, 4)] == ["button", "button", "input", "input"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), SCREENS, ids=[f"{w}-{'dark' if d else 'light'}" for w, d in SCREENS])
def test_pages_are_read_by_everyone(made, page_of, screenshots, width, dark):
    folder, text = made
    wrong = {}
    for name in PAGES:
        page = page_of(folder / f"{name}.html", width=WIDTHS[width], dark=dark)
        for details in page.locator("details").all():
            details.evaluate("(e) => { e.open = true; }")
        found = findings(page)
        sideways, sticking = _too_wide(page)
        found += [f"scrolls sideways by {sideways}: {sticking}"] if sideways else []
        wrong |= {name: found} if found else {}
        kind = "plain" if text == PLAIN else "hostile"
        page.screenshot(
            path=screenshots / f"site_{name}_{kind}_{width}_{'dark' if dark else 'light'}.png", full_page=True
        )
    assert wrong == {}


@pytest.mark.slow
def test_hostile_texts_are_read_as_they_were_written(made, page_of):
    folder, text = made
    for name in PAGES:
        page = page_of(folder / f"{name}.html")
        seen = page.evaluate("() => document.body.textContent")
        assert (SEEN if text == HOSTILE else text) in seen, name
        assert page.locator("script:not([src]), [onerror], [onclick], a[href^=javascript]").count() == 0, name


def _tab_to(page, name, most=80):
    """Press Tab until what has the focus begins with `name`; how many presses it took."""
    for presses in range(1, most):
        (stop,) = tab_stops(page, 1) or [{}]
        if stop.get("text", "").startswith(name):
            assert stop["ring"], f"{name} does not show that it has the focus"
            return presses
    raise AssertionError(f"{most} presses of Tab do not lead to {name}")


@pytest.mark.slow
def test_the_leaderboard_needs_no_mouse(made, page_of):
    folder, text = made
    page = page_of(folder / "leaderboard.html")
    shown = page.locator(".board:visible")
    assert (shown.count(), page.locator("table.grouped").count()) == (2, 2)
    assert _tab_to(page, "To the page") == 1
    page.keyboard.press("Enter")
    _tab_to(page, "4 jobs")  # past the list of notebooks, into the page
    page.locator("select[name=benchmark]").focus()
    page.keyboard.press("d")
    assert page.evaluate("() => document.activeElement.value") == "digits" and shown.count() == 1
    header = page.locator("table.grouped:visible th").filter(has_text="Last accuracy").first
    arms = page.locator("table.grouped:visible > tbody > tr:first-child > th strong")
    _tab_to(page, "Last accuracy")
    order = arms.all_text_contents()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending" and arms.all_text_contents() == order
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "ascending" and arms.all_text_contents() == order[::-1]


@pytest.mark.slow
def test_the_list_of_notebooks_opens_by_keyboard_on_a_phone(made, page_of):
    folder, text = made
    page = page_of(folder / "index.html", width=WIDTHS["narrow"])
    menu = page.get_by_role("navigation", name="Notebooks")
    assert not menu.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert menu.is_visible() and menu.get_by_role("link").count() >= 4
    page.keyboard.press("Space")
    assert not menu.is_visible()

"""The explorer in a real JupyterLab: by mouse and by keyboard alone, in both themes, one run and two."""

import pytest
from accessible import findings

pytestmark = pytest.mark.slow

MAKE = """
import cilkit
from cilkit import outcomes

settings = {"backbone": "none", "arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8}}
stream = cilkit.stream("digits", increment=2)
runs = {
    "means": cilkit.run("nearest_mean", stream, **settings),
    "<b>cosine</b>": cilkit.run("nearest_mean", stream, distance="cosine", **settings),
}
third = cilkit.run("nearest_mean", cilkit.stream("digits", order_seed=1996), **settings)
table = outcomes.collect([*runs.values(), third])
table["artifact"] = [run.artifact.name for run in (*runs.values(), third)]
table["digest"] = [run.artifact.digest for run in (*runs.values(), third)]
"""
SHOW = "view = cilkit.explore(runs, table=table)\nview"
ROOT = ".ck-explorer"


@pytest.fixture(scope="module")
def own_artifacts(tmp_path_factory):
    return str(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def notebook(lab, own_artifacts):
    opened = lab.open([MAKE, SHOW], env={"CILKIT_ARTIFACTS": own_artifacts}, size=(1280, 1400))
    opened.run_all(timeout=300)
    assert opened.errors() == []
    opened.page.wait_for_selector(f"{ROOT} [role=grid]")
    return opened


def _cell(page, name, t, place=0):
    return page.locator(f"{ROOT} [role=grid] >> nth={place}").locator(f'[data-class="{name}"][data-t="{t}"]')


def _heading(page):
    return page.locator(f"{ROOT} .ck-detail h4").first.inner_text()


def test_by_mouse_a_number_shows_its_images_their_answers_and_who_took_them(notebook):
    page = notebook.page
    first = page.locator(f"{ROOT} [role=grid] [data-class]").first.get_attribute("data-class")
    _cell(page, first, 4).click()
    page.wait_for_selector(f"{ROOT} .ck-card img")
    cards = page.locator(f"{ROOT} .ck-card")
    assert cards.count() == 54 and "after task 5: 54 images" in _heading(page)
    wide = page.locator(f"{ROOT} .ck-card img").evaluate_all(
        "(all) => Promise.all(all.map((i) => i.decode().then(() => i.naturalWidth)))"
    )
    assert set(wide) == {32}  # every picture came and is a whole one
    words = cards.first.inner_text()
    assert "means" in words and "<b>cosine</b>" in words and ("✓ right" in words or "✗ wrong" in words)

    share = int(_cell(page, first, 4).inner_text())
    page.check(f"{ROOT} [data-wrong]")
    page.wait_for_function("() => document.querySelector('.ck-explorer .ck-detail h4').textContent.includes('wrongly')")
    wrong = cards.count()
    assert wrong >= round(54 * (100 - share) / 100) and wrong < 54
    assert all("✗ wrong" in text for text in cards.all_inner_texts())

    page.locator(f"{ROOT} [data-stage]").fill("1")
    page.wait_for_function(
        "() => document.querySelector('.ck-explorer .ck-detail h4').textContent.includes('after task 1')"
    )
    assert _cell(page, first, 0).get_attribute("aria-selected") == "true"
    page.uncheck(f"{ROOT} [data-wrong]")
    page.wait_for_function("() => document.querySelectorAll('.ck-explorer .ck-card').length === 54")
    cards.first.click()
    page.wait_for_selector(f"{ROOT} .ck-story table")
    assert page.locator(f"{ROOT} .ck-story table").count() == 2
    assert page.locator(f"{ROOT} .ck-story table").first.locator("tbody tr").count() == 5
    assert page.locator(f"{ROOT} b").count() == 0  # markup in a label stays text
    for theme in ("Light", "Dark"):
        notebook.theme(f"JupyterLab {theme}")
        notebook.screenshot(f"explorer-{theme.lower()}", ROOT)
        assert findings(page, ".ck") == []


def test_by_keyboard_alone(notebook):
    page = notebook.page
    start = page.locator(f"{ROOT} [role=grid] [data-class]").first
    name = start.get_attribute("data-class")
    start.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "End", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(f"{ROOT} .ck-card img")
    assert name in _heading(page) and "after task 5" in _heading(page)
    page.locator(f"{ROOT} [data-stage]").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "() => document.querySelector('.ck-explorer .ck-detail h4').textContent.includes('after task 4')"
    )
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.ck-explorer .ck-detail h4').textContent.includes('wrongly')")
    page.locator(f"{ROOT} .ck-card").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{ROOT} .ck-story table")
    assert page.evaluate("() => document.activeElement.classList.contains('ck-story')")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # close: the focus goes back to the card
    assert page.evaluate("() => document.activeElement.classList.contains('ck-card')")
    assert notebook.model()["cells"][1]["source"] == SHOW and len(notebook.model()["cells"]) == 2  # Lab took no key


def test_runs_are_picked_from_the_table_sorted_and_filtered(notebook):
    page = notebook.page
    page.click(f"{ROOT} [data-choose]")
    rows = page.locator(f"{ROOT} .ck-chooser tbody tr")
    assert rows.count() == 3
    page.click(f'{ROOT} [data-sort="last accuracy"]')
    place = page.locator(f"{ROOT} .ck-chooser thead th").all_inner_texts().index("last accuracy ▼")
    figures = [float(row.locator("td").nth(place).inner_text()) for row in rows.all()]
    assert figures == sorted(figures, reverse=True)
    page.fill(f"{ROOT} [data-filter]", "1996")
    assert rows.count() == 1
    notebook.screenshot("explorer-choose", ROOT)
    rows.first.get_by_role("button").first.click()
    page.wait_for_function("() => document.querySelector('.ck-explorer .ck-map h4').textContent.includes('order 1996')")
    start = page.locator(f"{ROOT} [role=grid] [data-class]").first.get_attribute("data-class")
    _cell(page, start, 4).click()
    page.wait_for_selector(f"{ROOT} .ck-card img")
    page.fill(f"{ROOT} [data-find]", "no such class")
    assert "no class holds" in page.locator(f"{ROOT} .ck-maps").first.inner_text()


def test_where_the_benchmark_is_gone_the_answers_stand_without_images(lab, own_artifacts):
    gone = "import shutil\nshutil.rmtree(runs['means'].artifact.path.parents[1] / 'benchmark')"
    opened = lab.open([MAKE, gone, SHOW], env={"CILKIT_ARTIFACTS": own_artifacts}, size=(1280, 1200))
    opened.run_all(timeout=300)
    page = opened.page
    page.wait_for_selector(f"{ROOT} [role=grid]")
    page.locator(f"{ROOT} [role=grid] [data-class]").first.click()
    page.wait_for_selector(f"{ROOT} .ck-card")
    assert page.locator(f"{ROOT} .ck-card img").count() == 0
    assert "no images, since run/" in page.locator(f"{ROOT} .ck-detail").inner_text()

"""The sliders of notebook 00 in a real JupyterLab, by keyboard alone: the picture and its words follow them."""

import pytest
from lab import ROOT

pytestmark = pytest.mark.slow


def test_a_slider_moved_by_key_trains_the_network_anew(lab, tmp_path):
    notebook = lab.open(ROOT / "notebooks" / "00_start_here.ipynb", env={"CILKIT_REPORT_DIR": str(tmp_path)})
    notebook.run_all()
    assert notebook.errors() == []
    page = notebook.page
    panel = page.locator(".jp-OutputArea-output .widget-vbox")
    words, sliders = panel.locator("img").get_attribute("alt"), panel.get_by_role("slider")
    assert "rate 3, slow 0.1, 60 draws a class" in words and "chance 12.5 %" in words
    assert sliders.count() == 3 and panel.locator("p").inner_text() == words
    picture = panel.locator("img").get_attribute("src")
    sliders.nth(2).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.querySelector('.widget-vbox img').alt.includes('59 draws a class')")
    assert panel.locator("img").get_attribute("src") != picture
    notebook.screenshot("start_here_sliders", ".jp-OutputArea-output .widget-vbox")
    page.evaluate("() => document.querySelector('.widget-vbox').scrollIntoView()")
    notebook.screenshot("start_here_page")

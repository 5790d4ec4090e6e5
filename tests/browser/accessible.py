"""What a page keeps from those who cannot see it well or have no mouse: `findings(page)`, `tab_stops(page)`.

Contrast as WCAG 2.1 defines it (1.4.3): 4.5 to 1, and 3 to 1 for text of 24 px, or of 18.66 px in bold. A text's
ground is what its ancestors paint beneath it; over a picture it is not judged.
"""

from pathlib import Path
from typing import Any

FIND = Path(__file__).with_name("accessible.js").read_text(encoding="utf-8")

STOP = r"""(scope) => {
  const e = document.activeElement;
  if (!e || e === document.body || (scope && !e.closest(scope))) return null;
  const style = getComputedStyle(e);
  const ring = parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== 'none' || style.boxShadow !== 'none';
  const text = (e.getAttribute('aria-label') || e.textContent || e.value || '').trim().slice(0, 60);
  return { tag: e.tagName.toLowerCase(), text, ring };
}"""


def findings(page: Any, scope: str = "body") -> list[str]:
    """What is wrong in the elements that the CSS selector `scope` names (`.ck` for cilkit's widgets), a line each."""
    assert page.locator(scope).count(), f"nothing on the page is {scope}"
    return page.evaluate(FIND, scope)


def tab_stops(page: Any, presses: int, scope: str | None = None) -> list[dict]:
    """Where `presses` of Tab lead: {tag, text, ring: whether one sees the focus}, those outside `scope` left out."""
    stops = []
    for _ in range(presses):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(STOP, scope))
    return [stop for stop in stops if stop]

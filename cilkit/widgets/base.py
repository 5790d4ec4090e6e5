"""What the widgets share: a live view where a browser and a kernel are, and always a picture of the same thing.

One output holds both (`_repr_mimebundle_`), since a kernel cannot know whether somebody watches: JupyterLab shows the
view; papermill, the report and GitHub show the picture. So nothing that matters may depend on a click: what a widget
changes, it changes in a file.

The view asks and the kernel answers: `ask(model, "page", {number: 3})` in JavaScript calls `answer_page(number=3)` here
and gets back what it returns. Images travel in such answers, never as traits: a trait is saved with the notebook.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import traitlets

from cilkit.errors import UserError

try:
    from anywidget import AnyWidget as _Live
except ImportError:  # without the extra `lab` the picture is all that there is

    class _Live(traitlets.HasTraits):  # type: ignore[no-redef]
        comm = None

        def on_msg(self, callback: Any) -> None: ...

        def send(self, content: dict, buffers: list | None = None) -> None: ...


HERE = Path(__file__).parent


@cache
def script(name: str) -> str:
    """The ES module of a view: what all share, then `<name>.js`."""
    return "\n".join((HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name))


@cache
def sheet(name: str) -> str:
    """Its style sheet: what all share, then `<name>.css` where there is one."""
    paths = [HERE / f"{part}.css" for part in ("common", name)]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.exists())


class View(_Live):
    """A widget. A subclass sets `_esm = script(name)`, `_css = sheet(name)` and has `still`, `words` and `answer_…`."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.on_msg(self._heard)

    def still(self) -> bytes:
        """The PNG that stands for the view where it cannot live: kept small, it is saved with the notebook."""
        raise NotImplementedError

    def words(self) -> str:
        """What the picture shows, for those who cannot see it."""
        raise NotImplementedError

    def _heard(self, _: Any, content: Any, __: Any) -> None:
        """Answer a question of the view. What goes wrong is said in the view: a kernel's log is read by nobody."""
        if not isinstance(content, dict) or "kind" not in content:
            return
        asked = {key: value for key, value in content.items() if key not in ("kind", "id")}
        try:
            answer = getattr(self, f"answer_{content['kind']}")(**asked)
            told, buffers = answer if isinstance(answer, tuple) else (answer or {}, [])
            self.send({"id": content.get("id"), **told}, buffers)
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.send({"id": content.get("id"), "error": text})

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        data: dict[str, Any] = {"image/png": self.still(), "text/plain": self.words()}
        metadata: dict[str, Any] = {"image/png": {"alt": self.words()}}
        if self.comm is not None:
            live = super()._repr_mimebundle_(**kwargs)
            found = live[0] if isinstance(live, tuple) else live
            name = "application/vnd.jupyter.widget-view+json"
            data = {name: (found or {})[name], **data} if name in (found or {}) else data
        return data, metadata

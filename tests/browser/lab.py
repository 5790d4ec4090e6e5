"""A real JupyterLab for tests: a server of its own, headless Chromium, notebooks opened as copies.

    notebook = lab.open(ROOT / "notebooks/00_start_here.ipynb")    # or a list of cell sources
    notebook.run_all(timeout=120)
    assert notebook.errors() == []

Nothing of the developer's is read or written: settings, workspaces, kernels' histories and the copies lie in a
temporary folder. What the page complains of, and each request that leaves this machine, is collected in `troubles`; the
fixture `lab` (conftest.py) fails a test that leaves any behind.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import nbformat
import psutil

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
}
# Each notebook lies in a folder of its own; what a test sets for its kernel lies beside it.
STARTUP = """import json, os, pathlib
_path = pathlib.Path("kernel-environment.json")
if _path.is_file():
    os.environ.update(json.loads(_path.read_text()))
del _path
"""
PANEL = "window.jupyterapp.shell.currentWidget"
IDLE = f"""() => {{
  const kernel = {PANEL}.sessionContext.session?.kernel;
  const prompts = [...document.querySelectorAll('.jp-NotebookPanel .jp-InputPrompt')];
  const waiting = prompts.some((prompt) => prompt.innerText.includes('*'));
  return kernel?.status === 'idle' && !waiting;
}}"""


def browser_path() -> str | None:
    """Where Chromium is: `CILKIT_CHROMIUM`, else the first that is installed."""
    named = os.environ.get("CILKIT_CHROMIUM")
    return named or next((found for found in map(shutil.which, BROWSERS) if found), None)


def launch(playwright: Any) -> Any:
    """Headless Chromium that cannot reach any other machine."""
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    return playwright.chromium.launch(executable_path=browser_path(), args=options)


def harmless(text: str, url: str) -> bool:
    """Lab asks for its sessions and kernels while a page goes away; such a request fails, and that is normal."""
    path = urlsplit(url).path
    return text.startswith("Failed to load resource") and path.startswith(("/api/sessions", "/api/kernels"))


def watch(page: Any) -> list[str]:
    """A list that fills with what goes wrong on `page`: errors, dialogs, requests to other machines."""
    troubles: list[str] = []

    def said(message: Any) -> None:
        url = message.location.get("url", "")
        if message.type == "error" and not harmless(message.text, url):
            troubles.append(f"console: {message.text} ({url})")

    def asked(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "file", "about") and parts.hostname != "127.0.0.1":
            troubles.append(f"asked another machine: {request.url}")

    def dialog(box: Any) -> None:
        troubles.append(f"a dialog opened: {box.message}")
        box.dismiss()

    page.on("console", said)
    page.on("pageerror", lambda error: troubles.append(f"page: {error}"))
    page.on("request", asked)
    page.on("dialog", dialog)
    return troubles


class Server:
    """JupyterLab on a free port of this machine, with everything that it keeps in `home`. A context manager."""

    def __init__(self, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home, self.root, self.token = home, home / "root", secrets.token_hex(16)
        self.root.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._write_settings()
        folders = {f"JUPYTER_{kind}_DIR": kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
        folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        folders |= {"IPYTHONDIR": "ipython"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JPY_", "PYTEST_"))}
        kept.pop("MPLBACKEND", None)  # figures would vanish from the notebooks
        self.environment = kept | {name: str(home / folder) for name, folder in folders.items()} | (environment or {})

    def _write_settings(self) -> None:
        for name, settings in SETTINGS.items():
            path = self.home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        startup = self.home / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-environment.py").write_text(STARTUP)

    def __enter__(self) -> "Server":
        command = f"""-m jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={self.port}
            --ServerApp.port_retries=0 --IdentityProvider.token={self.token} --LabApp.expose_app_in_browser=True
            --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=None
            --LabApp.extension_manager=readonly --ServerApp.terminals_enabled=False""".split()
        with (self.home / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, f"--ServerApp.root_dir={self.root}"],
                **{"env": self.environment, "cwd": self.root, "stdout": log, "stderr": subprocess.STDOUT},
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self, patience: float = 60.0) -> None:
        request = urllib.request.Request(f"{self.address}/api/status", headers={"Authorization": f"token {self.token}"})
        late = time.monotonic() + patience
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > late:
                    log = (self.home / "server.log").read_text()[-2000:]
                    raise RuntimeError(f"JupyterLab did not start:\n{log}") from None
                time.sleep(0.1)

    def __exit__(self, *_: Any) -> None:
        """End the server, and whatever kernel it leaves."""
        try:
            kernels = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            kernels = []
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for kernel in kernels:
            try:
                kernel.kill()
            except psutil.NoSuchProcess:
                continue


class Lab:
    """Opens notebooks of one server in one browser; `close` ends their kernels and says what went wrong."""

    def __init__(self, server: Server, browser: Any, screenshots: Path) -> None:
        self.server, self.browser, self.screenshots = server, browser, screenshots
        self.opened: list[Notebook] = []

    def open(
        self,
        what: Path | list,
        *,
        name: str | None = None,
        parameters: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        size: tuple[int, int] = (1280, 900),
        timeout: float = 60.0,
    ) -> "Notebook":
        """Open a copy of a notebook, or a notebook of these cells (a text is a code cell, ("markdown", text) another).

        `parameters` go in a cell after the one tagged so, as papermill does it; `env` is set in the kernel. Returns
        when the kernel is idle; `timeout` is in seconds.
        """
        made = nbformat.read(what, as_version=4) if isinstance(what, Path) else _of_cells(what)
        path = (
            self.server.root
            / secrets.token_hex(4)
            / f"{name or (what.stem if isinstance(what, Path) else 'cells')}.ipynb"
        )
        path.parent.mkdir()
        if isinstance(what, Path) and not parameters:
            shutil.copyfile(what, path)
        else:
            _inject(made, parameters or {})
            nbformat.write(made, path)
        (path.parent / "kernel-environment.json").write_text(json.dumps(env or {}))
        page = self.browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page()
        notebook = Notebook(page, path, self)
        self.opened.append(notebook)
        notebook._come_up(timeout)
        return notebook

    def close(self) -> list[str]:
        """End what was opened; returns every trouble that no test took away."""
        troubles = []
        for notebook in self.opened:
            troubles += [f"{notebook.path.name}: {trouble}" for trouble in notebook.troubles]
            notebook.close()
        self.opened.clear()
        return troubles


class Notebook:
    """A notebook that is open in Lab. `page` is playwright's page, `path` the copy on disk."""

    def __init__(self, page: Any, path: Path, lab: Lab) -> None:
        self.page, self.path, self._lab = page, path, lab
        self.troubles = watch(page)

    def _come_up(self, timeout: float) -> None:
        server = self._lab.server
        place = quote(self.path.relative_to(server.root).as_posix())
        self.page.set_default_timeout(timeout * 1000)
        self.page.goto(f"{server.address}/lab/workspaces/{self.path.parent.name}/tree/{place}?token={server.token}")
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate("() => window.jupyterapp.restored.then(() => true)")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        self.page.evaluate(f"() => Promise.all([{PANEL}.context.ready, {PANEL}.sessionContext.ready]).then(() => true)")
        self.wait_idle(timeout)
        self.page.set_default_timeout(10_000)

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Execute one of Lab's commands and wait for it."""
        execute = "async ([name, given]) => { await window.jupyterapp.commands.execute(name, given); }"
        return self.page.evaluate(execute, [name, arguments or {}])

    def start_all(self) -> None:
        """Begin to run all cells and return at once; `wait_idle` waits for them."""
        self._begin("notebook:run-all-cells")

    def run_all(self, timeout: float = 120.0) -> None:
        """Run all cells; returns when they have finished, or one of them failed."""
        self.start_all()
        self._finish(timeout)

    def run_cell(self, number: int, timeout: float = 60.0) -> None:
        """Run the cell at `number`, counted from 0 over cells of all kinds."""
        chosen = f"(n) => {{ {PANEL}.content.activeCellIndex = n; {PANEL}.content.deselectAll(); }}"
        self.page.evaluate(chosen, number)
        self._begin("notebook:run-cell")
        self._finish(timeout)

    def _begin(self, command: str) -> None:
        execute = "(name) => { window.finished = false; window.jupyterapp.commands.execute(name)"
        self.page.evaluate(execute + ".finally(() => { window.finished = true; }); }", command)

    def _finish(self, timeout: float) -> None:
        self.page.wait_for_function("() => window.finished", timeout=timeout * 1000, polling=50)

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until the kernel is idle and no cell is waiting for it."""
        self.page.wait_for_function(IDLE, timeout=timeout * 1000, polling=50)

    def interrupt(self) -> None:
        """Press ■."""
        self.page.click('.jp-NotebookPanel-toolbar [data-command="notebook:interrupt-kernel"]')

    def restart_kernel(self, timeout: float = 60.0) -> None:
        """Restart the kernel without the question."""
        self.page.evaluate(f"() => {PANEL}.sessionContext.session.kernel.restart()")
        self.wait_idle(timeout)

    def save(self) -> Path:
        """Save the copy; returns its path."""
        self.command("docmanager:save")
        return self.path

    def theme(self, name: str) -> None:
        """ "JupyterLab Dark" or "JupyterLab Light"."""
        self.command("apputils:change-theme", {"theme": name})
        self.page.wait_for_function("(name) => document.body.dataset.jpThemeName === name", arg=name)
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def model(self) -> dict:
        """The notebook as Lab holds it, as nbformat would write it."""
        return self.page.evaluate(f"() => {PANEL}.content.model.toJSON()")

    def outputs(self, number: int | None = None) -> list[dict]:
        """Outputs of the cell at `number`, or of all cells."""
        cells = self.model()["cells"]
        chosen = cells if number is None else [cells[number]]
        return [output for cell in chosen for output in cell.get("outputs", [])]

    def errors(self) -> list[str]:
        """`Name: value` of each error output."""
        found = [output for output in self.outputs() if output["output_type"] == "error"]
        return [f"{output['ename']}: {output['evalue']}" for output in found]

    def text(self, number: int | None = None) -> str:
        """What cells printed or showed as plain text."""
        parts = []
        for output in self.outputs(number):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            parts.append("".join(text))
        return "".join(parts)

    def screenshot(self, name: str, selector: str | None = None) -> Path:
        """A PNG of the window, or of what `selector` finds first, in the folder of screenshots."""
        path = self._lab.screenshots / f"{name}.png"
        target = self.page.locator(selector).first if selector else self.page
        target.screenshot(path=path)
        return path

    def close(self) -> None:
        """End the kernel and the page."""
        if not self.page.is_closed():
            try:
                self.page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")
            finally:
                self.page.context.close()


def _of_cells(cells: list) -> nbformat.NotebookNode:
    made = []
    for cell in cells:
        kind, text = cell if isinstance(cell, tuple) else ("code", cell)
        made.append(nbformat.v4.new_markdown_cell(text) if kind == "markdown" else nbformat.v4.new_code_cell(text))
    spec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": spec})


def _inject(notebook: nbformat.NotebookNode, parameters: dict[str, Any]) -> None:
    """Values in a cell after the parameters cell, as papermill writes it."""
    if not parameters:
        return
    tagged = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    cell = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(tagged[0] + 1, cell)

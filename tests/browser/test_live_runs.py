"""Runs that a person watches in JupyterLab, and stops: by the button, and by ■."""

import json
import time

import pytest

pytestmark = pytest.mark.slow

SETUP = """
import time, cilkit
from cilkit import incremental

tick = incremental._Record.tick


def slowly(self, *arguments, **settings):
    time.sleep(0.15)
    tick(self, *arguments, **settings)


incremental._Record.tick = slowly
stream = cilkit.stream("digits", order_seed=1993, increment=2)
settings = {"epochs": 12, "milestones": [6], "recipe": "none", "model_args": {"channels": [8, 8, 16, 16]}}
"""
BESIDE = """
import ipywidgets

heard = []
beside = ipywidgets.Button(description="Beside")
beside.on_click(lambda _: heard.append(time.time()))
beside
"""
RUN = 'run = cilkit.run("finetune", stream, **settings)'
AWAIT = 'run = await cilkit.background(cilkit.run, "finetune", stream, **settings)'
AFTER = "print('heard', len(heard)); print('digest', run.artifact.digest)"
LIVE = ".jp-OutputArea [role=progressbar]"


def parts(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.safetensors") if ".part" in str(path))


def now(notebook):
    """What the block says; the share that its bar shows."""
    return int(notebook.page.locator(LIVE).get_attribute("aria-valuenow"))


def wait_for(condition, seconds=60):
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, "it never came that far"
        time.sleep(0.1)


def digest_of(notebook, cell):
    return notebook.text(cell).rpartition("digest ")[2].strip()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The digest that an undisturbed run ends in."""
    import subprocess
    import sys

    root = tmp_path_factory.mktemp("whole")
    code = f"{SETUP}\nincremental._Record.tick = tick\n{RUN}\nprint(run.artifact.digest)"
    environment = __import__("os").environ | {"CILKIT_ARTIFACTS": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["button", "interrupt", "interrupt of an awaiting cell"])
def test_a_run_is_watched_stopped_and_goes_on(lab, tmp_path, whole, how):
    awaits = how != "interrupt"
    notebook = lab.open([SETUP, BESIDE, AWAIT if awaits else RUN, AFTER], env={"CILKIT_ARTIFACTS": str(tmp_path)})
    page = notebook.page
    notebook.start_all()
    page.wait_for_selector(LIVE, timeout=60_000)
    first = now(notebook)
    wait_for(lambda: now(notebook) > max(first, 22))  # a row of the matrix is there
    for theme in ("Light", "Dark") if how == "button" else ():
        notebook.theme(f"JupyterLab {theme}")
        notebook.screenshot(f"live_run_{theme.lower()}")
    if awaits:
        page.click("button:has-text('Beside')")
    if how == "button":
        button = page.locator("button:has-text('Stop'):not([data-command])").last
        button.focus()
        page.keyboard.press("Enter")
    else:
        notebook.interrupt()
    notebook.wait_idle(60)
    [error] = notebook.errors()
    assert error.startswith("Stopped: interrupted in task ") and error.endswith("run again to go on")
    assert notebook.outputs(3) == []  # Run All ended
    [said] = [output["traceback"] for output in notebook.outputs(2) if output["output_type"] == "error"]
    assert said == [error]  # one sentence, no traceback
    assert parts(tmp_path) and not list(tmp_path.rglob("*.lock"))
    assert page.locator("button:has-text('Stopping')").count() == 0
    blocks = [output for output in notebook.outputs(2) if "text/html" in output.get("data", {})]
    assert len(blocks) == 1 and "stopped after" in "".join(blocks[0]["data"]["text/html"])
    notebook.screenshot(f"live_run_stopped_by_{how.replace(' ', '_')}")

    notebook.run_cell(2, timeout=120)
    notebook.run_cell(3)
    assert notebook.errors() == [] and digest_of(notebook, 3) == whole
    assert ("heard 1" in notebook.text(3)) == awaits
    assert parts(tmp_path) == []
    page.locator("details summary").last.click()
    notebook.screenshot(f"live_run_done_{how.replace(' ', '_')}")
    saved = notebook.save()
    wait_for(lambda: "done in" in saved.read_text())
    assert saved.stat().st_size < 40_000
    outputs = [output for cell in json.loads(saved.read_text())["cells"] for output in cell.get("outputs", [])]
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 1

"""Seconds to import cilkit, and of each notebook's set-up cell against `import torch` alone.

    python perf/startup.py [--repeats 5]

Every measurement is a fresh process; the best of the repeats counts, because a busy machine only adds. The set-up cell
runs in an IPython shell after its parameters cell, as in a kernel; artifacts that it reads are made before.
Limits: import 0.3 s, ratio 1.5. Last line: JSON; its value is the import, its ratio that of the slowest set-up cell.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT = "import time; begun = time.perf_counter(); import {module}; print(time.perf_counter() - begun)"
SET_UP = """
import contextlib, io, sys, time
import nbformat
from IPython.core.interactiveshell import InteractiveShell
code = [cell.source for cell in nbformat.read(sys.argv[1], as_version=4).cells if cell.cell_type == "code"]
shell = InteractiveShell.instance()
shell.run_cell(code[0], store_history=True).raise_error()
begun = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    shell.run_cell(code[1], store_history=True).raise_error()
print(time.perf_counter() - begun)
"""


def seconds(program: str, *arguments: str) -> float:
    """What a fresh interpreter measures and prints in its last line."""
    with tempfile.TemporaryDirectory() as elsewhere:
        environment = {**os.environ, "CILKIT_REPORT_DIR": elsewhere, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    programs = {f"import {module}": (IMPORT.format(module=module),) for module in ("cilkit", "torch")}
    programs |= {path.stem: (SET_UP, str(path)) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for path in programs.values():
        seconds(*path)  # compiled files and what the cell reads are there from now on
    best = {name: min(seconds(*program) for _ in range(repeats)) for name, program in programs.items()}
    print(f"{'':28}{'seconds':>9}{'of import torch':>17}")
    for name, value in best.items():
        print(f"{name:28}{value:9.3f}{value / best['import torch']:17.2f}")
    ratio = max(value for name, value in best.items() if not name.startswith("import")) / best["import torch"]
    print(
        json.dumps({"name": "startup", "value": round(best["import cilkit"], 4), "unit": "s", "ratio": round(ratio, 3)})
    )


if __name__ == "__main__":
    main()

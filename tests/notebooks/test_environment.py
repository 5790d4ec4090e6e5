"""One set of versions, said once: pyproject, lock, conda environment and imports agree."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
PLATFORMS = {  # sys_platform, platform_system, platform_machine, os_name
    "Linux x86": ("linux", "Linux", "x86_64", "posix"),
    "Linux arm": ("linux", "Linux", "aarch64", "posix"),
    "macOS": ("darwin", "Darwin", "arm64", "posix"),
    "Windows": ("win32", "Windows", "AMD64", "nt"),
}
MARKERS = ("sys_platform", "platform_system", "platform_machine", "os_name")


def _pins():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line and line[0] not in "# "]


def _name(text):
    return text.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_has_exactly_one_pin_that_satisfies_it(platform, python):
    machine = dict(zip(MARKERS, PLATFORMS[platform], strict=True))
    machine |= {"python_version": python, "python_full_version": f"{python}.5"}
    machine |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    pins = [pin for pin in _pins() if pin.marker is None or pin.marker.evaluate(machine)]
    for text in REQUIREMENTS:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate(machine):
            continue
        found = [pin for pin in pins if _name(pin.name) == _name(wanted.name)]
        assert len(found) == 1, f"{wanted.name}: {len(found)} pins"
        version = next(iter(found[0].specifier)).version
        assert wanted.specifier.contains(version, prereleases=True), f"{text} but {wanted.name} {version} is locked"


def test_the_conda_environment_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment == {
        "name": "cilkit",
        "channels": ["conda-forge"],
        "dependencies": ["python=3.12", "pip", {"pip": ["-c requirements.lock", "-e .[lab,test]"]}],
    }


def _imports():
    """(file, module) of every import of another project, in modules, scripts, tests and notebooks."""
    sources = [(path, path.read_text()) for folder in ("cilkit", "tests", "perf", "scripts")
               for path in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        sources.append((path, "\n".join(cell.source for cell in cells if cell.cell_type == "code")))
    own = {"cilkit", "tests", *(path.stem for path, _ in sources)} - {"parameters"}
    for path, source in sources:
        for node in ast.walk(ast.parse(source)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                module = name.split(".")[0]
                if module not in sys.stdlib_module_names and module not in own:
                    yield path.relative_to(ROOT).as_posix(), module


def test_every_import_of_another_project_is_declared():
    declared = {_name(Requirement(text).name) for text in REQUIREMENTS}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {}
    for file, module in _imports():
        if not {_name(name) for name in distributions.get(module, [module])} & declared:
            undeclared.setdefault(module, file)
    assert undeclared == {}, f"add to pyproject.toml, then `make lock`: {undeclared}"


def test_continuous_integration_runs_the_tests_as_people_do():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100 and script.read_text().rstrip().endswith("exec make test")


def test_hooks_run_what_is_installed():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]

"""The command line: exit states, and one sentence for bad input."""

import io

import nbformat
import pytest

from cilkit import artifacts
from cilkit.cli import main
from cilkit.commands.run import CellLines
from cilkit.workbook.doctor import differences
from cilkit.workbook.execute import Status, read_status


@pytest.fixture(autouse=True)
def artifacts_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))


@pytest.fixture(autouse=True)
def signals_restored():
    import signal

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_run_merges_files_and_parameters_and_later_ones_win(write_notebook, tmp_path, capfd):
    cell = "x: float = 1.0\nname: str = 'a'\nsizes: list[int] = [1]"
    path = write_notebook("01_a", "print(x, name, sizes)", parameters=cell)
    (tmp_path / "a.yaml").write_text("x: 1e-4\nname: b\n")
    (tmp_path / "b.yaml").write_text("name: c\n")
    output = tmp_path / "out.ipynb"
    files = ["-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml")]
    assert main(["run", str(path), *files, "-p", "sizes", "[2, 3]", "-p", "name", "007", "-o", str(output)]) == 0
    assert read_status(output).parameters == {"x": 1e-4, "name": "007", "sizes": [2, 3]}
    assert nbformat.read(output, as_version=4).cells[-1].outputs[0].text == "0.0001 007 [2, 3]\n"
    printed = capfd.readouterr()
    assert "x: '1e-4' was read as 0.0001" in printed.out and "0.0001 007 [2, 3]" in printed.out
    assert printed.err.startswith("cell 1 of 4\n") and printed.err.endswith("cell 4 of 4\n")
    assert main(["run", str(path), *files, "-p", "sizes", "[2, 3]", "-p", "name", "007", "-o", str(output)]) == 0
    assert "nothing has changed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["-p", "y", "1"], "unknown parameter 'y'"), (["-f", "none.yaml"], "there is no parameter file none.yaml")],
)
def test_bad_input_is_one_sentence_and_status_2(write_notebook, tmp_path, capsys, arguments, says):
    assert main(["run", str(write_notebook("02")), *arguments, "-o", str(tmp_path / "o.ipynb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cilkit: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "o.ipynb").exists()


def test_a_failing_notebook_is_status_1_and_says_where(write_notebook, tmp_path, capsys):
    assert main(["run", str(write_notebook("03", "1 / 0")), "-o", str(tmp_path / "o.ipynb")]) == 1
    assert "failed in code cell 3: ZeroDivisionError" in capsys.readouterr().err


def test_in_a_file_a_line_comes_every_half_minute_and_for_the_first_and_the_last_cell():
    stream = io.StringIO()
    tell = CellLines(stream)
    for cell in range(1, 10):
        tell(Status("running", "a", "b", cell=cell, cells=9, left=60.0 * (9 - cell)))
        tell.last -= 10.0  # seconds pass
    assert stream.getvalue().splitlines() == [
        "cell 1 of 9, 8 min left",
        "cell 4 of 9, 5 min left",
        "cell 7 of 9, 2 min left",
        "cell 9 of 9",
    ]
    stream.isatty = lambda: True
    tell(Status("running", "a", "b", cell=2, cells=9))
    assert stream.getvalue().endswith("cell 2 of 9\n")


def test_a_full_disk_is_one_sentence(write_notebook, tmp_path, capsys, monkeypatch):
    def write(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(artifacts, "atomic_write", write)
    assert main(["run", str(write_notebook("04")), "-o", str(tmp_path / "o.ipynb")]) == 1
    error = capsys.readouterr().err
    assert "the disk is full" in error and "o.status.json" in error and error.count("\n") == 1


def test_verify_finds_what_was_changed_afterwards(tmp_path, capsys):
    def make(work):
        artifacts.atomic_write(work.path / "a.txt", "abc")

    made = artifacts.obtain("test", 1, {"a": 1}, {}, make)
    assert main(["verify"]) == 0 and "1 artifacts, 0 problems" in capsys.readouterr().out
    (made.path / "a.txt").write_text("abd")
    assert main(["verify", made.name]) == 1 and "a.txt was changed" in capsys.readouterr().out
    (made.path / "a.txt").write_text("ab")
    assert main(["verify"]) == 1 and "2 bytes" in capsys.readouterr().out


def test_doctor_lists_what_differs_from_the_lock(tmp_path):
    import numpy

    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# made\nnumpy=={numpy.__version__}\n    # via x\npytest==0.1\nnot-there==1\n")
    lines = list(differences(lock))
    assert len(lines) == 2 and "pytest" in lines[0] and "==0.1" in lines[0]
    assert lines[1] == "2 packages compared with requirements.lock: 1 differ"


@pytest.fixture
def painted():
    import cilkit

    return cilkit.paint(cilkit.foresee("handwritten characters", classes=3), "font-renderings", per_class=4, workers=1)


def test_doctor_names_what_is_damaged_and_rebuilds_a_lost_manifest(painted, tmp_path, capsys):
    import shutil

    assert main(["doctor", painted.artifact.name]) == 0 and "no findings" in capsys.readouterr().out
    damaged = tmp_path / "damaged"
    shutil.copytree(painted.artifact.path, damaged)
    (damaged / "manifest.parquet").unlink()
    assert main(["doctor", str(damaged)]) == 1 and "the manifest is missing" in capsys.readouterr().out
    assert main(["doctor", str(damaged), "--rebuild"]) == 0
    assert "was written from the shards" in capsys.readouterr().out
    assert (damaged / "manifest.parquet").read_bytes() == painted.artifact.file("manifest.parquet").read_bytes()
    shard = damaged / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:700] + b"X" + shard.read_bytes()[701:])
    assert main(["doctor", str(damaged)]) == 1
    assert "! 00000.tar" in capsys.readouterr().out
    assert main(["doctor", "--rebuild"]) == 2 and "needs an image set" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_export_gives_every_image_away(painted, tmp_path, capsys, form):
    target = tmp_path / "given" / ("%06d.tar" if form == "webdataset" else "folder")
    assert main(["export", painted.artifact.name, form, str(target)]) == 0
    assert "12 images of 3 classes" in capsys.readouterr().out
    if form == "imagefolder":
        assert len(list(target.rglob("*.png"))) == 12
    else:
        import tarfile

        with tarfile.open(tmp_path / "given" / "000000.tar") as tar:
            assert sum(name.endswith(".png") for name in tar.getnames()) == 12
    assert main(["export", painted.artifact.name, form, str(target)]) == 2, "what is there is never written over"

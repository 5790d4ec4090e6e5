"""Downloads from a local server: cut and resumed, cut and begun again, refused when the checksum is another."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from cilkit.data import fetching
from cilkit.data.catalogue import Download
from cilkit.errors import UserError

CONTENT = bytes(range(256)) * 400
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; cuts the first `server.cuts` answers in the middle; knows Range unless told not to."""

    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if self.server.cuts > 0:
            self.server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.files, made.asked, made.cuts, made.ranges = {"/data.bin": CONTENT}, [], 0, True
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_file_arrives_and_is_said(server, tmp_path):
    said = []
    path = fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, said.append)
    assert path.read_bytes() == CONTENT and "0.1 MB" in said[0] and [p.name for p in tmp_path.iterdir()] == ["data.bin"]
    fetching.download(f"{server.url}/data.bin", path, MD5)
    assert len(server.asked) == 1  # it is there and right


def test_a_cut_download_goes_on_where_it_was_cut(server, tmp_path):
    server.cuts = 2
    path = fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, lambda _: None)
    half = len(CONTENT) // 2
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_what_came_is_kept_for_the_next_time(server, tmp_path):
    server.cuts = 3
    with pytest.raises(UserError, match=r"was cut 3 times; 89600 bytes are kept, run again to go on"):
        fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin.part"]
    path = fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, lambda _: None)
    assert path.read_bytes() == CONTENT and server.asked[-1] == "bytes=89600-"


def test_without_range_a_cut_download_is_removed_and_begun_again(server, tmp_path):
    server.ranges, server.cuts = False, 1
    path = fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, lambda _: None)
    assert path.read_bytes() == CONTENT and server.asked == [None, None]
    server.cuts = 3
    with pytest.raises(UserError, match="was cut 3 times; nothing of it is kept"):
        fetching.download(f"{server.url}/data.bin", tmp_path / "other.bin", MD5, lambda _: None)
    assert not (tmp_path / "other.bin.part").exists()


def test_a_server_that_answers_range_with_everything_does_not_double_the_file(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    path = fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5, lambda _: None)
    assert path.read_bytes() == CONTENT and server.asked == ["bytes=1000-"]


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT)  # killed between the last byte and the renaming
    assert fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5).read_bytes() == CONTENT
    (tmp_path / "data.bin").unlink()
    part.write_bytes(CONTENT + b"of another file")
    assert fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5).read_bytes() == CONTENT


def test_a_checksum_that_does_not_match(server, tmp_path):
    wrong = "0" * 32
    with pytest.raises(UserError, match=rf"has the md5 {MD5}, expected {wrong}: damaged or changed"):
        fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", wrong, lambda _: None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data.bin").write_bytes(b"laid here by hand")  # somebody's own file is never removed
    with pytest.raises(UserError, match="damaged or changed; remove .*data.bin"):
        fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").exists()


def test_no_such_file_and_no_such_server(server, tmp_path):
    with pytest.raises(UserError, match=r"/gone.bin answered 404"):
        fetching.download(f"{server.url}/gone.bin", tmp_path / "gone.bin")
    with pytest.raises(UserError, match="cannot be reached"):
        fetching.download("http://127.0.0.1:9/data.bin", tmp_path / "data.bin")
    assert list(tmp_path.iterdir()) == []


def test_no_room_on_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs 0.1 MB more, .* has 0.0 MB free"):
        fetching.download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_archives_are_unpacked_whole_and_once(server, tmp_path):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("more/b.txt", "b")
    server.files |= {"/a.tar.gz": _tar({"set/images/a.txt": b"a", "readme": b"r"}), "/b.zip": zipped.getvalue()}
    wanted = [Download(f"{server.url}/a.tar.gz", gives="set"), Download(f"{server.url}/b.zip", gives="more")]
    wanted.append(Download(f"{server.url}/data.bin", MD5))
    fetching.fetch(wanted, tmp_path, lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.bin", "more", "readme", "set"]
    assert (tmp_path / "set/images/a.txt").read_bytes() == b"a"
    fetching.fetch(wanted, tmp_path, lambda _: None)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_tar({"other/a.txt": b"a"}), "holds other and no set; it changed"),
        (_tar({"set/a.txt": b"a" * 100_000})[:-200], "cannot be unpacked"),
        (_tar({"set/a.txt": b"a", "../outside": b"evil"}), "cannot be unpacked"),
    ],
)
def test_archives_that_do_not_fit_leave_nothing_behind(server, tmp_path, content, message):
    server.files["/a.tgz"] = content
    with pytest.raises(UserError, match=message):
        fetching.fetch([Download(f"{server.url}/a.tgz", gives="set")], tmp_path / "home", lambda _: None)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["a.tgz"] and not (tmp_path / "outside").exists()

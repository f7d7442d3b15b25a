"""Downloads from a local server with faults, and malicious archives."""

import contextlib
import hashlib
import io
import itertools
import os
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cxr_tf import console
from cxr_tf.data.loading import open_catalog
from cxr_tf.data.sources import downloads
from cxr_tf.data.sources.downloads import SOURCES, Source, prepare, unpack
from cxr_tf.errors import UserError

Answer = Callable[[BaseHTTPRequestHandler, bytes, int], None]


class Server:
    """A server of `content`: first it gives the responses in `answers`, then correct ones."""

    def __init__(self) -> None:
        self.content = b""
        self.answers: list[Answer] = []
        self.ranges: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range", "")
                outer.ranges.append(asked)
                start = int(asked[6:-1]) if asked else 0
                answer = outer.answers.pop(0) if outer.answers else well
                with contextlib.suppress(ConnectionError):
                    answer(self, outer.content, start)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/set.zip"

    def source(self, *, inside: str = "") -> Source:
        return Source(
            title="A set",
            url=self.url,
            page="https://example.org/set",
            bytes=len(self.content),
            checksum="sha256:" + hashlib.sha256(self.content).hexdigest(),
            licence="CC BY 4.0",
            citation="Somebody 2020",
            inside=inside,
        )


def head(
    h: BaseHTTPRequestHandler, status: int, length: int, start: int = 0, total: int = 0
) -> None:
    h.send_response(status)
    h.send_header("Content-Length", str(length))
    if status == 206:
        h.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    h.end_headers()


def well(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    if start >= len(content):
        h.send_error(416)
        return
    head(h, 206 if start else 200, len(content) - start, start, len(content))
    h.wfile.write(content[start:])


def knows_no_ranges(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    head(h, 200, len(content))
    h.wfile.write(content)


def drops_after(count: int) -> Answer:
    def answer(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
        head(h, 206 if start else 200, len(content) - start, start, len(content))
        h.wfile.write(content[start : start + count])

    return answer


def says(status: int) -> Answer:
    return lambda h, content, start: h.send_error(status)


def promises(extra: int) -> Answer:
    def answer(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
        head(h, 206 if start else 200, len(content) - start + extra, start, len(content))
        h.wfile.write(content[start : len(content) + min(extra, 0)])

    return answer


def flips_a_byte(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    wrong = bytearray(content)
    wrong[-1] ^= 1
    well(h, bytes(wrong), start)


def answers_another_range(h: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
    head(h, 206, len(content) - start, 0, len(content))
    h.wfile.write(content[: len(content) - start])


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(running: Server) -> Server:
    running.content = os.urandom(1_000_003)
    running.answers, running.ranges = [], []
    return running


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([], [""]),
        ([drops_after(400_000)], ["", "bytes=400000-"]),
        (
            [drops_after(400_000), drops_after(0), drops_after(1)],
            ["", "bytes=400000-", "bytes=400000-", "bytes=400001-"],
        ),
        ([says(503), says(503)], ["", "", ""]),
        ([says(429), drops_after(10), says(500)], ["", "", "bytes=10-", "bytes=10-"]),
        ([drops_after(400_000), knows_no_ranges], ["", "bytes=400000-"]),
        ([drops_after(400_000), answers_another_range], ["", "bytes=400000-", ""]),
        ([promises(-300)], ["", "bytes=999703-"]),
    ],
)  # fmt: skip
def test_a_download_survives_a_faulty_server(
    server: Server, tmp_path: Path, answers: list[Answer], ranges: list[str]
) -> None:
    server.answers = list(answers)
    file = prepare(server.source(), tmp_path / "data" / "set.npz", pause=0)
    assert file.read_bytes() == server.content
    assert server.ranges == ranges
    assert names(file.parent) == {"set.npz", "set.LICENCE.txt"}
    terms = (file.parent / "set.LICENCE.txt").read_text()
    assert "CC BY 4.0" in terms
    assert "Somebody 2020" in terms


def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.npz"
    server.answers = [drops_after(600_000), *[says(503)] * downloads.MAX_FAILURES]
    with pytest.raises(UserError, match=r"503.*is kept, and the same command resumes"):
        prepare(server.source(), target, pause=0)
    assert not target.exists()
    server.answers, server.ranges = [], []
    prepare(server.source(), target, pause=0)
    assert target.read_bytes() == server.content
    assert server.ranges == ["bytes=600000-"]


def test_a_partial_download_of_another_file_is_restarted(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".set.npz.part").write_bytes(b"of an older version")
    prepare(server.source(), tmp_path / "set.npz", pause=0)
    assert (tmp_path / "set.npz").read_bytes() == server.content
    assert server.ranges == ["bytes=19-", ""]


def test_an_oversized_partial_download_is_restarted(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".set.npz.part").write_bytes(server.content + b"more")
    prepare(server.source(), tmp_path / "set.npz", pause=0)
    assert (tmp_path / "set.npz").read_bytes() == server.content


@pytest.mark.parametrize(
    ("answers", "message", "left"),
    [
        ([flips_a_byte], "is not the published file: its sha256 is", set()),
        ([promises(+7)], r"has 1000010 bytes, but the published file has 1000003", set()),
        ([says(404)], r"404.*pass it with --from", set()),
        ([says(503)] * 20, r"503.*example\.org/set", set()),
        ([drops_after(5)] + [drops_after(0)] * 20, "ended early", {".set.npz.part"}),
    ],
)
def test_failed_downloads_are_explained(
    server: Server, tmp_path: Path, answers: list[Answer], message: str, left: set[str]
) -> None:
    server.answers = list(answers)
    with pytest.raises(UserError, match=message):
        prepare(server.source(), tmp_path / "set.npz", pause=0)
    assert names(tmp_path) == left
    assert len(server.ranges) <= downloads.MAX_FAILURES + 1


def test_unreachable_servers_and_invalid_urls_are_explained(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"):
        prepare(server.source(), tmp_path / "a", origin="http://127.0.0.1:1/x", pause=0)
    with pytest.raises(UserError, match="not a valid URL"):
        prepare(server.source(), tmp_path / "a", origin=f"{server.url}/R\xf6ntgen", pause=0)
    with pytest.raises(UserError, match="give an http"):
        prepare(server.source(), tmp_path / "a", origin="file:///etc/passwd", pause=0)


def test_mirrors_and_local_files_must_match_the_checksum(server: Server, tmp_path: Path) -> None:
    source = server.source()
    elsewhere = Source(**{**source.__dict__, "url": "http://127.0.0.1:1/gone"})
    prepare(elsewhere, tmp_path / "a.npz", origin=server.url, pause=0)
    file = tmp_path / "mine"
    file.write_bytes(server.content)
    prepare(elsewhere, tmp_path / "b.npz", origin=str(file))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert file.exists()
    file.write_bytes(server.content[:-1] + b"?")
    with pytest.raises(UserError, match="not the published file"):
        prepare(elsewhere, tmp_path / "c.npz", origin=str(file))
    with pytest.raises(UserError, match="no such file"):
        prepare(elsewhere, tmp_path / "c.npz", origin=str(tmp_path / "none"))
    assert not (tmp_path / "c.npz").exists()


def test_a_full_disk_is_detected_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = downloads.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        downloads.shutil, "disk_usage", lambda _: usage._replace(free=len(server.content) - 1)
    )
    with pytest.raises(UserError, match="are needed in"):
        prepare(server.source(), tmp_path / "set.npz")
    assert server.ranges == []


def test_progress_shows_size_rate_and_remaining_time(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = itertools.count(0.0, 20.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    prepare(server.source(), tmp_path / "set.npz")
    shown = [line for line in capsys.readouterr().err.splitlines() if "MB/s" in line]
    assert "1.0 of 1.0 MB" in shown[-1]
    assert "0 s left" in shown[-1]


# ---------------------------------------------------------------------- archives


def zipped(entries: dict[str, bytes], **attributes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get("mode", 0o644 | stat.S_IFREG) << 16
            archive.writestr(info, content)
    return stream.getvalue()


KERMANY_LIKE = {
    "chest_xray/train/NORMAL/IM-0001-0001.jpeg": b"one",
    "chest_xray/train/PNEUMONIA/person1_virus_1.jpeg": b"two",
    "chest_xray/test/NORMAL/IM-0002-0001.jpeg": b"three",
    "chest_xray/.DS_Store": b"",
    "__MACOSX/chest_xray/train/NORMAL/._IM-0001-0001.jpeg": b"",
    "chest_xray/train/NORMAL/Thumbs.db": b"",
}


def test_an_archive_is_unpacked_and_its_licence_written(server: Server, tmp_path: Path) -> None:
    server.content = zipped(KERMANY_LIKE)
    server.answers = [drops_after(200)]
    folder = prepare(server.source(inside="chest_xray"), tmp_path / "kermany", pause=0)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "Somebody 2020" in found.pop("LICENCE.txt").decode()
    assert found == {
        name.removeprefix("chest_xray/"): content
        for name, content in KERMANY_LIKE.items()
        if name.endswith(".jpeg") and not name.startswith("__")
    }
    assert names(tmp_path) == {"kermany"}
    assert len(open_catalog(str(folder), resplit=False)) == 3
    # A second call finds it and sends no request.
    server.ranges = []
    prepare(server.source(inside="chest_xray"), folder)
    assert server.ranges == []


@pytest.mark.parametrize(
    ("entries", "mode", "message"),
    [
        ({"chest_xray/../../out.png": b""}, stat.S_IFREG, "would write to"),
        ({"/etc/out.png": b""}, stat.S_IFREG, "would write to"),
        ({"chest_xray\\..\\out.png": b""}, stat.S_IFREG, "would write to"),
        ({"C:out.png": b""}, stat.S_IFREG, "would write to"),
        ({"chest_xray/train": b"/etc"}, stat.S_IFLNK, "link or a device"),
        ({"chest_xray/a.png": bytes(10_000_000)}, stat.S_IFREG, "would unpack to 0.0 GB"),
        ({"other/a.png": b"1"}, stat.S_IFREG, "no image below"),
    ],
)
def test_malicious_archives_write_nothing(
    tmp_path: Path, entries: dict[str, bytes], mode: int, message: str
) -> None:
    inner = tmp_path / "here"
    inner.mkdir()
    archive = inner / "a.zip"
    archive.write_bytes(zipped({**entries, "chest_xray.txt": b""}, mode=mode | 0o644))
    with pytest.raises(UserError, match=message):
        unpack(archive, inner / "target", inside="chest_xray", terms="")
    assert names(inner) == {"a.zip"}
    assert names(tmp_path) == {"here"}


def test_a_damaged_archive_leaves_no_files(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    content = bytearray(zipped({f"chest_xray/{n}.png": os.urandom(500) for n in range(5)}))
    content[1400] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target", inside="chest_xray", terms="")
    archive.write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target", inside="chest_xray", terms="")
    assert names(tmp_path) == {"a.zip"}


def test_the_table_of_sources_is_well_formed() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for source in SOURCES.values():
        algorithm, digest = source.checksum.split(":")
        assert len(bytes.fromhex(digest)) * 2 == lengths[algorithm]
        assert source.url.startswith("https://")
        assert "CC BY 4.0" in source.terms

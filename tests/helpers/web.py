"""A web server on 127.0.0.1 that breaks off, lies, and changes its files."""

import hashlib
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants, file_download


@dataclass
class Served:
    """A file, and how it is served.

    Args:
        content: Its bytes.
        etag: Its version; the empty string for none.
        breaks: Bytes after which the next answers break off, one number for each. Those after them are whole.
        stated: The size that answers to HEAD state, `None` for the right one, -1 for none.
        sent: The size that answers to GET state, `None` for the right one.
        status: Status of all answers, `None` for the right one.
        then: A file that takes the place of this one after the next HEAD.
        stall: Half of the bytes are sent, and the others when this is set.
    """

    content: bytes
    etag: str = '"1"'
    breaks: list[int] = field(default_factory=list)
    stated: int | None = None
    sent: int | None = None
    status: int | None = None
    then: "Served | None" = None
    stall: threading.Event | None = None


@dataclass
class Web:
    """The server: its address, its files by name, and the requests that it got."""

    address: str
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, dict]] = field(default_factory=list)

    def add(self, name: str, content: bytes, **settings) -> str:
        """Serve a file. Returns its address with its SHA-256."""
        self.files[name] = Served(content, **settings)
        return f"{self.address}/{name}#sha256={hashlib.sha256(content).hexdigest()}"

    @property
    def ranges(self) -> list[str | None]:
        """The ranges that were asked for, by GET."""
        return [headers.get("range") for method, headers in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        web: Web = self.server.web
        web.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        name = self.path.strip("/").partition("?")[0]
        file = web.files.get(name)
        if file is None or file.status is not None:
            self.send_response(404 if file is None else file.status)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.command == "HEAD":
            self.send_response(200)
            if file.stated != -1:
                self.send_header("Content-Length", str(len(file.content) if file.stated is None else file.stated))
            if file.etag:
                self.send_header("ETag", file.etag)
            self.end_headers()
            if file.then is not None:
                web.files[name] = file.then
            return None
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.headers.get("If-Range", file.etag) == file.etag else 0
        body = file.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        self.send_header("Content-Length", str(len(body) if file.sent is None else file.sent))
        self.send_header("Connection", "close")
        self.end_headers()
        if file.stall is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            file.stall.wait(timeout=60)
            return self.finish_half(body[len(body) // 2 :])
        self.wfile.write(body[: file.breaks.pop(0)] if file.breaks else body)
        self.wfile.flush()
        self.close_connection = True

    def finish_half(self, rest):
        self.close_connection = True
        with suppress(ConnectionError):  # nobody listens any more
            self.wfile.write(rest)

    do_GET = do_HEAD = handle_any


@pytest.fixture
def web(monkeypatch, tmp_path):
    """The server, with an empty cache for what is downloaded, and no time lost between two tries."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what broke off in the middle of a chunk is lost
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    yield server.web
    server.shutdown()
    server.server_close()
    thread.join()

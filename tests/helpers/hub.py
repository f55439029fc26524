"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories in memory, and the part of the protocol used here."""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api


TOKEN = "hf_stand_in"
LFS_SUFFIXES = (".png", ".safetensors", ".bin")


def oid_of(path: str, content: bytes) -> str:
    """The Hub's identifier of a content: sha256 of a large file, else git's hash of the blob."""
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else hashlib.sha1(blob).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server. `repos` has the commits of each repository; while `broken`, every answer is a status 500."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, list[dict[str, bytes]]] = defaultdict(list)
        self.large: dict[str, bytes] = {}
        self.broken = False

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        """The files of a repository's last commit."""
        return self.repos[f"{kind}/{repo_id}"][-1]

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "models") -> None:
        """Add a repository, or a commit to one, as if somebody else had pushed it."""
        commits = self.repos[f"{kind}/{repo_id}"]
        commits.append({**(commits[-1] if commits else {".gitattributes": b""}), **files})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body: bytes | dict | list, status: int = 200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.broken:
            return self.answer({"error": "down"}, 500)
        if self.command == "PUT":  # a large file, at the address that the batch call gave
            hub.large[path.rpartition("/")[2]] = body
            return self.answer({})
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo = r"([\w.-]+/[\w.-]+)"
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body)["objects"])
        if found := re.fullmatch(rf"/api/(models|spaces|datasets)/{repo}(?:/(\w+)/([^/]+))?/?", path):
            kind, name, what, revision = found.groups()
        elif found := re.fullmatch(rf"/(?:(spaces|datasets)/)?{repo}/resolve/([^/]+)/(.+)", path):
            kind, name, revision, what = found[1] or "models", found[2], found[3], "resolve"
        else:
            return self.answer({"error": f"no route {path}"}, 404)
        commits = hub.repos.get(f"{kind}/{name}")
        number = len(commits or ()) if revision in (None, "main") else int(revision, 16)
        if not commits or number > len(commits):
            return self.answer({}, 404, X_Error_Code="RepoNotFound" if not commits else "RevisionNotFound")
        files, sha = commits[number - 1], f"{number:040x}"
        if what == "resolve":
            if found[4] not in files:
                return self.answer({}, 404, X_Error_Code="EntryNotFound")
            etag = f'"{oid_of(found[4], files[found[4]])}"'
            return self.answer(files[found[4]], ETag=etag, X_Repo_Commit=sha)
        if what == "tree":
            tree = [{"type": "file", "path": p, "size": len(c), "oid": oid_of(p, c)} for p, c in files.items()]
            return self.answer(tree)
        if what == "preupload":
            return self.answer({"files": [self.mode(file["path"], files) for file in json.loads(body)["files"]]})
        if what == "commit":
            return self.commit(commits, name, [json.loads(line) for line in body.splitlines()])
        self.answer({"id": name, "sha": sha, "private": False, "siblings": [{"rfilename": path} for path in files]})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, wanted: dict):
        kind, name = f"{wanted.get('type', 'model')}s", f"{wanted['organization']}/{wanted['name']}"
        address = {"url": f"{self.server.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"}
        if self.server.repos.get(f"{kind}/{name}"):
            return self.answer({**address, "error": "You already created this repo"}, 409)
        self.server.add(name, {}, kind)
        self.answer(address)

    def batch(self, objects: list[dict]):
        for entry in objects:
            if entry["oid"] not in self.server.large:
                entry["actions"] = {"upload": {"href": f"{self.server.endpoint}/large/{entry['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def mode(self, path: str, files: dict[str, bytes]) -> dict:
        known = {"oid": oid_of(path, files[path])} if path in files else {}
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, **known}

    def commit(self, commits: list[dict], name: str, lines: list[dict]):
        if lines[0]["value"].get("parentCommit", f"{len(commits):040x}") != f"{len(commits):040x}":
            return self.answer({"error": "The parent commit is not the latest one."}, 412)
        files = dict(commits[-1])
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "deletedFile":
                del files[path]
            elif line["key"] == "lfsFile":
                files[path] = self.server.large[line["value"]["oid"]]
            else:
                files[path] = base64.b64decode(line["value"]["content"])
        commits.append(files)
        sha = f"{len(commits):040x}"
        self.answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that `huggingface_hub` uses, with a token that may write, in this process and in those that it starts."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    home = tmp_path / "hf-home"
    environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name, value in {**environment, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()

"""A small hub on this machine: the endpoints that `huggingface_hub` calls to push and to load."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

WRITE, READ = "hf_write", "hf_read"
LARGE = (".safetensors", ".png", ".jpg", ".webp")


@dataclass
class Repo:
    """A repository: every commit's files, and where its branches are."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    refs: dict[str, str] = field(default_factory=dict[str, str])

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        names = [*self.commits, *sorted(files)]
        sha = hashlib.sha1(" ".join(names).encode() + str(len(self.commits)).encode()).hexdigest()
        before = self.commits.get(self.refs.get(branch, ""), {})
        self.commits[sha] = before | files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server; `broken` maps a method and a part of a path to the status that it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.commits: list[list[dict[str, Any]]] = []
        self.broken: dict[tuple[str, str], int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def seen(self, method: str) -> list[str]:
        return [path for verb, path in self.log if verb == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it waits 40 ms between head and body
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride] - http.server says less

    def log_message(self, format: str, *args: Any) -> None: ...

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client has hung up
            self.close_connection = True

    def do_GET(self) -> None:
        self._dispatch()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _dispatch(self) -> None:
        body = self._body()
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        path = "/" + "/".join(parts)
        self.server.log.append((self.command, path))
        for (method, part), status in self.server.broken.items():
            if method == self.command and part in path:
                return self._say(status, {"error": "broken on purpose"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if parts[0] == "stored":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.server.stored[parts[1]] = body
            return self._say(200, {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body)["objects"])
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self._token() is None):
            return self._say(404 if self._token() else 401, {"error": "no"}, code="RepoNotFound")
        rest = parts[4:] if api else parts[2:]
        verb, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        sha = repo.resolve(revision)
        if sha is None:
            return self._say(404, {"error": "no"}, code="RevisionNotFound")
        match verb:
            case "revision":
                files = [{"rfilename": file} for file in repo.commits[sha]]
                self._say(200, {"id": name, "sha": sha, "private": repo.private, "siblings": files})
            case "resolve":
                self._file(repo, sha, "/".join(rest[2:]))
            case "preupload":
                files = [_mode(one["path"]) for one in json.loads(body)["files"]]
                self._say(200, {"files": files})
            case "commit":
                self._commit(name, repo, revision, body)
            case _:
                raise NotImplementedError(path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _token(self) -> str | None:
        found = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return found if found in (WRITE, READ) else None

    def _may_write(self) -> bool:
        if self._token() == WRITE:
            return True
        status = 403 if self._token() else 401
        self._say(status, {"error": "You don't have the required permissions"})
        return False

    def _create(self, wanted: dict[str, Any]) -> None:
        if not self._may_write():
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repos:
            return self._say(409, {"error": "You already created this model repo"})
        repo = self.server.repos[name] = Repo(wanted.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs"})
        self._say(200, {"url": f"{self.server.url}/{name}"})

    def _validate(self, content: str) -> None:
        found = yaml.safe_load(content.split("---\n")[1])
        errors = [] if isinstance(found["base_model"], str) else [{"message": "base_model"}]
        self._say(400 if errors else 200, {"errors": errors, "warnings": []})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        if not self._may_write():
            return
        for one in objects:
            if one["oid"] not in self.server.stored:
                upload = {"href": f"{self.server.url}/stored/{one['oid']}"}
                one["actions"] = {"upload": upload}
        self._say(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        if not self._may_write():
            return
        header, *operations = map(json.loads, body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent not in (None, repo.refs[branch]):
            return self._say(412, {"error": "A commit has happened since"})
        self.server.commits.append([header, *operations])
        files = {one["value"]["path"]: self._content(one) for one in operations}
        request = "create_pr=1" in self.path
        if request:
            repo.refs["refs/pr/1"] = repo.refs[branch]
        sha = repo.commit(files, "refs/pr/1" if request else branch)
        url = f"{self.server.url}/{name}"
        pr = f"{url}/discussions/1" if request else None
        self._say(200, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pr})

    def _content(self, operation: dict[str, Any]) -> bytes:
        value = operation["value"]
        if operation["key"] == "file":
            return base64.b64decode(value["content"])
        return self.server.stored[value["oid"]]

    def _file(self, repo: Repo, sha: str, file: str) -> None:
        content = repo.commits[sha].get(file)
        if content is None:
            return self._say(404, {"error": "no"}, code="EntryNotFound", commit=sha)
        self.send_response(200)
        self.send_header("X-Repo-Commit", sha)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _say(self, status: int, value: Any, code: str = "", commit: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
            if text:
                self.send_header(key, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(LARGE) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}

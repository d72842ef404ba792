"""How the stand-in for the Hub answers each request that huggingface_hub makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import Commit, File, Repo, check_card

if TYPE_CHECKING:
    from hub_server import HubServer

WRITE, READ, OTHER = "hf_alice_write", "hf_alice_read", "hf_bob_write"
TOKENS = {WRITE: ("alice", "write"), READ: ("alice", "read"), OTHER: ("bob", "write")}
LFS_FILES = (".safetensors", ".bin", ".pt", ".pth", ".npz")  # as a new repository's .gitattributes


class AnswerError(Exception):
    """A request's refusal: status, message and the Hub's own code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | headers
        if code is not None:
            self.headers["X-Error-Code"] = code


class Handler(BaseHTTPRequestHandler):
    """One request to the stand-in whose state is ``server_state``."""

    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server_state
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.body = self._read_body()
        line = f"{self.command} {self.url.path}"
        try:
            with hub.lock:
                hub.requests.append(line)
                for fault in hub.faults:
                    if fault.times and fault.line.search(line):
                        fault.times -= 1
                        raise AnswerError(fault.status, "the stand-in was told to fail")
                for method, pattern, name in ROUTES:
                    found = re.fullmatch(pattern, self.url.path)
                    if found and self.command in method.split("|"):
                        getattr(self, name)(*map(unquote, found.groups()))
                        return
            raise AnswerError(501, f"the stand-in does not know {line}")
        except AnswerError as answer:
            body = json.dumps({"error": str(answer)}).encode()
            self._send(answer.status, body, **answer.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 (http.server's names)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # -- who may do what ----------------------------------------------------------------------------

    def _user(self) -> tuple[str | None, str]:
        given = self.headers.get("Authorization")
        if given is None:
            return None, ""
        user = TOKENS.get(given.removeprefix("Bearer "))
        if user is None:
            raise AnswerError(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, name: str, write: bool = False) -> Repo:
        user, role = self._user()
        repo = self.server_state.repos.get(name)
        mine = user == name.split("/")[0]
        if repo is None or (repo.private and not mine):
            # The Hub does not tell a private repository from a missing one, and says 401 to strangers.
            raise AnswerError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise AnswerError(401, "Invalid username or password.")
        if write and not (mine and role == "write"):
            raise AnswerError(403, f"You don't have the rights to write to {name}")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise AnswerError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _json(self) -> Any:
        return json.loads(self.body)

    # -- repositories -------------------------------------------------------------------------------

    def whoami(self) -> None:
        user, role = self._user()
        if user is None:
            raise AnswerError(401, "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": role}}
        self._send(200, {"type": "user", "name": user, "orgs": [], "auth": token})

    def create_repo(self) -> None:
        user, role = self._user()
        if user is None:
            raise AnswerError(401, "Invalid username or password.")
        asked = self._json()
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if role != "write" or owner != user:
            raise AnswerError(403, f"You don't have the rights to create a model under {owner}")
        url = {"url": f"{self.server_state.endpoint}/{name}", "name": name}
        if name in self.server_state.repos:
            self._send(409, url | {"error": "You already created this model repo"})
            return
        # huggingface_hub 1.3 says it in the second way
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = Repo(name, private=private)
        rules = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_FILES)
        repo.add("main", "initial commit", {".gitattributes": File(rules.encode(), lfs=False)})
        self.server_state.repos[name] = repo
        self._send(200, url)

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        data = {"id": name, "modelId": name, "sha": commit.oid, "private": repo.private}
        self._send(200, data | {"tags": [], "siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        commit = self._commit(self._repo(name), revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        rows: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                above = prefix + "/".join(parts[:depth])
                rows[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                rows[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.data)}
                if file.lfs:
                    pointer = {"oid": file.sha256, "size": len(file.data)}
                    rows[path]["lfs"] = pointer | {"pointerSize": len(file.pointer)}
        if folder and not rows:
            raise AnswerError(404, f"{folder} does not exist", "EntryNotFound")
        self._send(200, list(rows.values()))

    def refs(self, name: str) -> None:
        repo = self._repo(name)
        rows = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1].oid}
            for branch, commits in repo.branches.items()
            if not branch.startswith("refs/")
        ]
        self._send(200, {"branches": rows, "converts": [], "tags": []})

    def create_branch(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise AnswerError(409, f"Reference already exists: refs/heads/{branch}")
        start = self._commit(repo, self._json().get("startingPoint") or "main")
        repo.branches[branch] = [start]
        self._send(200, {})

    # -- uploads ------------------------------------------------------------------------------------

    def validate_yaml(self) -> None:
        errors, warnings = check_card(self._json()["content"])
        body = {
            "errors": [{"message": message} for message in errors],
            "warnings": [{"message": message} for message in warnings],
        }
        self._send(400 if errors else 200, body)

    def preupload(self, name: str, revision: str) -> None:
        commit = self._commit(self._repo(name, write=True), revision)
        rows = []
        for asked in self._json()["files"]:
            lfs = asked["path"].endswith(LFS_FILES) or asked["size"] > 10_000_000
            row = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular"}
            there = commit.files.get(asked["path"])
            if there is not None:
                row["oid"] = there.sha256 if there.lfs else there.oid
            rows.append(row | {"shouldIgnore": False})
        self._send(200, {"files": rows})

    def lfs_batch(self, name: str) -> None:
        self._repo(name, write=True)
        hub, rows = self.server_state, []
        for asked in self._json()["objects"]:
            oid, size = asked["oid"], asked["size"]
            row: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in hub.objects:
                upload: dict[str, Any] = {"href": f"{hub.storage}/upload/{oid}/{size}"}
                if size > hub.part_size:
                    count = -(-size // hub.part_size)
                    header = {"chunk_size": str(hub.part_size)}
                    header |= {str(n): f"{hub.storage}/part/{oid}/{n}" for n in range(1, count + 1)}
                    upload = {"href": f"{hub.endpoint}/complete/{oid}/{size}", "header": header}
                verify = {"href": f"{hub.endpoint}/{name}.git/info/lfs/objects/verify"}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        self._send(200, {"transfer": "basic", "objects": rows})

    def _store(self, oid: str, size: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid or len(data) != int(size):
            raise AnswerError(400, f"{len(data)} bytes came that are not {oid} of {size} bytes")
        self.server_state.objects[oid] = data

    def _no_token(self) -> None:
        if self.headers.get("Authorization") is not None:
            raise AnswerError(400, "a token was sent to the storage, which the Hub's refuses")

    def upload(self, oid: str, size: str) -> None:
        self._no_token()
        self._store(oid, size, self.body)
        self._send(200)

    def upload_part(self, oid: str, number: str) -> None:
        self._no_token()
        self.server_state.parts[oid, int(number)] = self.body
        self._send(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def complete(self, oid: str, size: str) -> None:
        whole = b""
        for part in self._json()["parts"]:
            data = self.server_state.parts.pop((oid, part["partNumber"]), b"")
            if part["etag"] != f'"{hashlib.md5(data).hexdigest()}"':
                raise AnswerError(400, f"part {part['partNumber']} is not the one that came")
            whole += data
        self._store(oid, size, whole)
        self._send(200, {})

    def lfs_verify(self, name: str) -> None:
        self._repo(name, write=True)
        asked = self._json()
        if len(self.server_state.objects.get(asked["oid"], b"")) != asked["size"]:
            raise AnswerError(404, "no such object, or another size")
        self._send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        before = self._commit(repo, revision)
        files, title = dict(before.files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, before.oid):
                    raise AnswerError(
                        412, "A commit has happened since. Please refresh and try again."
                    )
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.server_state.objects:
                    raise AnswerError(400, f"{value['path']}: its LFS object was never uploaded")
                files[value["path"]] = File(self.server_state.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise AnswerError(501, f"the stand-in does not know {key} in a commit")
        url = f"{self.server_state.endpoint}/{name}"
        answer = {}
        if "create_pr" in self.query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        oid = repo.add(revision, title, files).oid
        self._send(
            200, answer | {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        )

    # -- downloads ----------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(name), revision)
        file = commit.files.get(path)
        if file is None:
            header = {"X-Repo-Commit": commit.oid}
            raise AnswerError(404, "Entry not found", "EntryNotFound", **header)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
            where = {"Location": f"{self.server_state.storage}/blob/{file.sha256}"}
            self.server_state.objects.setdefault(file.sha256, file.data)
            self._send(302, b"", **headers, **linked, **where)
            return
        self._send_range(file.data, headers | {"ETag": f'"{file.oid}"'})

    def blob(self, sha256: str) -> None:
        self._no_token()
        self._send_range(self.server_state.objects[sha256], {"ETag": f'"{sha256}"'})

    def _send_range(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, **headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(data) - 1)
        if start >= len(data):
            raise AnswerError(416, f"{start} is behind the end")
        place = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self._send(206, data[start : end + 1], **headers, **place)


_REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create_repo"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", f"/api/models/{_REPO}", "info"),
    ("GET", f"/api/models/{_REPO}/revision/([^/]+)", "info"),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)", "tree"),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)/(.+)", "tree"),
    ("GET", f"/api/models/{_REPO}/refs", "refs"),
    ("POST", f"/api/models/{_REPO}/branch/([^/]+)", "create_branch"),
    ("POST", f"/api/models/{_REPO}/preupload/([^/]+)", "preupload"),
    ("POST", f"/api/models/{_REPO}/commit/([^/]+)", "commit"),
    ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", f"/{_REPO}\\.git/info/lfs/objects/verify", "lfs_verify"),
    ("PUT", "/upload/([0-9a-f]{64})/([0-9]+)", "upload"),
    ("PUT", "/part/([0-9a-f]{64})/([0-9]+)", "upload_part"),
    ("POST", "/complete/([0-9a-f]{64})/([0-9]+)", "complete"),
    ("GET|HEAD", f"/{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
    ("GET|HEAD", "/blob/([0-9a-f]{64})", "blob"),
]

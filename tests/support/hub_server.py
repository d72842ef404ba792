"""A stand-in for the Hub on this machine: enough of its HTTP API for huggingface_hub to push and pull.

Repositories with branches and pull requests, private ones, LFS uploads (in one part or several) whose
SHA-256 is checked, commits, listings, downloads with ranges and redirects. Files live in memory.
It answers as huggingface.co does where huggingface_hub 2.4 looks; what it does not know is a 501.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from hub_answers import Handler
from hub_repos import File, Repo


@dataclass
class Fault:
    """The next ``times`` requests whose line matches get ``status`` instead of an answer."""

    line: re.Pattern[str]
    status: int
    times: int


class HubServer:
    """The stand-in; a context manager that serves on a free port of this machine.

    Attributes:
        repos: by id; ``file`` and ``card`` read from them.
        requests: ``"METHOD /path"`` of each request so far.
        part_size: LFS files larger than this many bytes are asked for in parts.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.part_size = 5_000_000
        self.lock = threading.RLock()

    def __enter__(self) -> HubServer:
        hub = self

        class Answers(Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files are kept: another host, as the Hub's are, so no token may go there."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def fail(self, line: str, status: int = 500, times: int = 1) -> None:
        """Answer the next ``times`` requests whose ``"METHOD /path"`` has ``line`` in it with that."""
        self.faults.append(Fault(re.compile(line), status, times))

    def file(self, repo: str, path: str, revision: str = "main") -> bytes:
        commit = self.repos[repo].find(revision)
        assert commit is not None
        return commit.files[path].data

    def card(self, repo: str, revision: str = "main") -> str:
        return self.file(repo, "README.md", revision).decode()

    def edit(self, repo: str, path: str, change: Callable[[str], str]) -> None:
        """Change a text file of ``main``, as somebody does in the Hub's web editor."""
        files = dict(self.repos[repo].branches["main"][-1].files)
        files[path] = File(change(files[path].data.decode()).encode(), lfs=False)
        self.repos[repo].add("main", f"Update {path}", files)

    def files(self, repo: str, revision: str = "main") -> set[str]:
        commit = self.repos[repo].find(revision)
        assert commit is not None
        return set(commit.files)

"""A server that speaks the part of the Hugging Face Hub's API that huggingface_hub uses, from a folder.

`python -m tests.hub_server FOLDER` prints its port. FOLDER has OWNER/NAME for each repository, and
OWNER/NAME@REVISION for each further revision of one; a file .gated or .private in it makes it so.
Each request is a line of FOLDER/requests.log.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

USERS = {
    "writes": {"name": "ada", "orgs": [{"name": "acme"}]},
    "reads": {"name": "bob", "orgs": []},
}
_log_lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_) -> None:
        pass

    @property
    def user(self) -> dict | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        with _log_lock, open(self.root / "requests.log", "a", encoding="utf-8") as log:
            log.write(f"{method} {path}\n")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        if path == "/api/whoami-v2":
            self._send({"type": "user", **self.user} if self.user else {}, 200 if self.user else 401)
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/(.+))?", path):
            self._api(*match.groups(), body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body)["objects"])
        elif match := re.fullmatch(r"/lfs/(\w+)", path):
            (self.root / "lfs").mkdir(exist_ok=True)
            (self.root / "lfs" / match[1]).write_bytes(body)
            self._send({})
        else:
            self._send({"error": "unknown"}, 500)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, value: dict | list, status: int = 200, **headers: str) -> None:
        self._send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | headers)

    def _send_bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repository(self, name: str, revision: str | None) -> Path | None:
        """Return the folder of a revision, or answer with the Hub's error and return None."""
        main = self.root / name
        if not main.is_dir() or ((main / ".private").exists() and not self.user):
            code = {"X-Error-Code": "RepoNotFound"} if self.user else {}
            self._send({"error": "Invalid username or password."}, 404 if self.user else 401, **code)
            return None
        folders = [main, *main.parent.glob(f"{main.name}@*")]
        for folder in folders:
            if revision in (folder.name.partition("@")[2].replace("+", "/") or "main", _commit(folder), None):
                return folder
        self._send({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        return None

    def _api(self, name: str, kind: str | None, revision: str | None, body: bytes) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
        sizes = {str(file): (folder / file).stat().st_size for file in files if file.name[0] != "."}
        if kind == "tree":
            self._send(
                [
                    {"type": "file", "path": file, "size": size, "oid": _digest(folder / file)}
                    for file, size in sizes.items()
                ]
            )
        elif kind == "preupload":
            modes = {
                file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular"
                for file in json.loads(body)["files"]
            }
            self._send(
                {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
            )
        elif kind == "commit":
            self._commit(name, folder, body)
        else:
            self._send(
                {
                    "id": name,
                    "sha": _commit(folder),
                    "private": (folder / ".private").exists(),
                    "siblings": [{"rfilename": file, "size": size} for file, size in sizes.items()],
                }
            )

    def _file(self, name: str, revision: str, file: str) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        if (folder / ".gated").exists():
            self._send({"error": "gated"}, 403 if self.user else 401, **{"X-Error-Code": "GatedRepo"})
        elif not (folder / file).is_file():
            self._send({"error": "no entry"}, 404, **{"X-Error-Code": "EntryNotFound"})
        else:
            headers = {"ETag": f'"{_digest(folder / file)}"', "X-Repo-Commit": _commit(folder)}
            self._send_bytes((folder / file).read_bytes(), 200, headers)

    def _create(self, wanted: dict) -> None:
        user = self.user
        if user is None or user["name"] == "bob":
            self._send({"error": "forbidden"}, 403 if user else 401)
            return
        folder = self.root / (wanted.get("organization") or user["name"]) / wanted["name"]
        url = f"http://{self.headers['Host']}/{folder.relative_to(self.root)}"
        if folder.exists():
            self._send({"error": "exists", "url": url}, 409)
            return
        folder.mkdir(parents=True)
        if wanted.get("visibility") == "private":
            (folder / ".private").touch()
        self._send({"url": url})

    def _validate(self, card: str) -> None:
        try:
            metadata = yaml.safe_load(card.split("---\n")[1])
            errors = [] if isinstance(metadata["library_name"], str) else ["library_name"]
        except (IndexError, KeyError, TypeError, yaml.YAMLError) as error:
            errors = [repr(error)]
        self._send({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)

    def _batch(self, objects: list[dict]) -> None:
        answers = [
            item | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{item['oid']}"}}}
            for item in objects
        ]
        self._send({"transfer": "basic", "objects": answers})

    def _commit(self, name: str, folder: Path, body: bytes) -> None:
        if (folder / ".broken").exists():
            self._send({"error": "out of order"}, 500)
            return
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                content = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                content = (self.root / "lfs" / value["oid"]).read_bytes()
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                continue
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(content)
        host = self.headers["Host"]
        self._send(
            {
                "commitUrl": f"http://{host}/{name}/commit/{_commit(folder)}",
                "commitOid": _commit(folder),
                "success": True,
            }
        )


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _commit(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha1("".join(f"{file.relative_to(folder)} {_digest(file)}" for file in files).encode()).hexdigest()


class Hub:
    """A running server.

    Attributes:
        root: Its folder.
        environment: The variables with which huggingface_hub finds it, and keeps its cache in `root`.
    """

    def __init__(self, root: Path, port: int):
        self.root = root
        self.environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "",
        }

    @property
    def requests(self) -> list[str]:
        """The requests so far."""
        file = self.root / "requests.log"
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Run a server of the repositories in `root` in a process of its own."""
    root.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub_server", str(root)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Hub(root, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    Handler.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()

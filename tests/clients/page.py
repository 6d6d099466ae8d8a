"""Run a page of this machine in a headless browser.

Everything that the browser requests is served from here alone, and the page posts its results back.
"""

from __future__ import annotations

import json
import mimetypes
import os
import signal
import subprocess
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.clients.environments import browser

TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".html": "text/html",
}


def run_page(
    page: Path, ready: Path, job: Path, result: Path, models: dict[str, Path], log: Path, seconds: float
) -> str:
    """Open `page` in Chromium and wait until it reports that it is done.

    Args:
        page: The HTML file; its scripts are served below /scripts/.
        ready: The npm environment, whose node_modules are served.
        job: The content served as /job.json.
        result: The file for what the page posts.
        models: Folders by the name under which /models/ serves them.
        log: The file for the browser's own output and the requests.
        seconds: How long to wait.

    Returns:
        How the page ended, if it did not end well.
    """
    chromium = browser()
    done, requests = threading.Event(), []
    routes = {"/node_modules/": ready / "node_modules", "/scripts/": page.parent}
    files = {"/": page, "/job.json": job}
    handler = partial(_Handler, routes, files, models, result, done, requests)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (
        tempfile.TemporaryDirectory(prefix="ds-distill-chromium-", ignore_cleanup_errors=True) as profile,
        log.open("w") as output,
    ):
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        process = subprocess.Popen(
            [chromium, *options, f"http://127.0.0.1:{server.server_port}/"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            finished = done.wait(seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            server.shutdown()
            server.server_close()
        output.write("\n".join(requests) + "\n")
    if not finished:
        return f"the page was not done after {seconds / 60:g} minutes"
    return json.loads(result.read_text(encoding="utf-8")).get("error", "")


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, routes, files, models, result, done, requests, *arguments):
        self.routes, self.files, self.models, self.result, self.done, self.requests = (
            routes,
            files,
            models,
            result,
            done,
            requests,
        )
        super().__init__(*arguments)

    def do_GET(self) -> None:  # noqa: N802  (the base class's name)
        file = self._file(unquote(urlsplit(self.path).path))
        if file is None or not file.is_file():
            self.requests.append(f"404 {self.path}")
            self.send_error(404)
            return
        self.requests.append(f"200 {self.path}")
        content = file.read_bytes()
        self.send_response(200)
        self.send_header(
            "Content-Type", TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:  # noqa: N802
        self.result.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        if self.path == "/done":
            self.done.set()

    def _file(self, path: str) -> Path | None:
        if path in self.files:
            return self.files[path]
        for prefix, root in self.routes.items():
            if path.startswith(prefix):
                return root / path.removeprefix(prefix)
        _, models, name, *rest = [*path.split("/"), "", ""]
        return self.models[name] / "/".join(filter(None, rest)) if models == "models" and name in self.models else None

    def log_message(self, *_) -> None:
        """Print nothing on standard error, since the requests are in the log."""

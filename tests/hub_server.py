"""A Hub on this machine: what huggingface_hub asks for, for models and data sets kept in a folder.

Layout: `<root>/<models|datasets>/<org>/<name>/<files>`, all at one commit. Names that begin with `gated`, `broken` or
`refused` answer as the Hub does for these; all of `meta-llama` is gated.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAULTS = {"gated": (403, "GatedRepo"), "broken": (500, ""), "refused": (403, "")}


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Serve the folder; gives the address and the list of requests: path, and the token that came with it."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            if self.path.startswith("/api/") and self.path.split("/")[2] not in ("models", "datasets"):
                return self.answer(404)
            seen.append((self.path, self.headers.get("Authorization")))
            parts = [part for part in self.path.partition("?")[0].split("/") if part]
            kind = "models"
            if parts[0] == "api":
                kind, parts, asked = parts[1], parts[2:4], parts[4:]
            else:
                if parts[0] == "datasets":
                    kind, parts = "datasets", parts[1:]
                parts, asked = parts[:2], parts[2:]
            folder = root / kind / "/".join(parts)
            asked_for = "gated" if parts[0] == "meta-llama" else parts[1]
            fault = next((FAULTS[name] for name in FAULTS if asked_for.startswith(name)), None)
            if fault:
                return self.answer(fault[0], b"{}", X_Error_Code=fault[1])
            if not folder.is_dir():
                return self.answer(401, b"{}", X_Error_Code="RepoNotFound")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            revision = asked[1] if len(asked) > 1 else "main"
            if revision not in ("main", "v1", COMMIT):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            if asked[:1] == ["resolve"]:
                content = (folder / "/".join(asked[2:])).read_bytes()
                return self.answer(200, content, ETag=f'"{oid(content)}"', X_Repo_Commit=COMMIT)
            if asked[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid(path.read_bytes())}
                    for name, path in zip(names, files, strict=True)
                ]
                return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
            info = {"id": "/".join(parts), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()

"""A server on this machine that answers like Google Cloud Storage, to read from only."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse


class _Handler(BaseHTTPRequestHandler):
    """JSON API of objects: one, its bytes, or a list; the bucket's name does not matter."""

    def log_message(self, *_):
        """Nothing on standard error."""

    def do_GET(self):
        url = urlparse(self.path)
        place, _, name = url.path.partition("/o/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if name:
            self._object(unquote(name), media=query.get("alt") == "media")
        elif place.endswith("/o"):
            self._json(self._list(query))
        else:
            self._json({"kind": "storage#bucket", "name": place.rpartition("/")[2]})

    def _files(self):
        root = self.server.root
        return {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}

    def _facts(self, name, path):
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(path.stat().st_size),
            "generation": "1",
            "metageneration": "1",
            "storageClass": "STANDARD",
            "timeCreated": "2024-01-01T00:00:00Z",
            "updated": "2024-01-01T00:00:00Z",
        }

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, last = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        for name, path in self._files().items():
            if not name.startswith(prefix) or name < first or (last and name >= last):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._facts(name, path))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _object(self, name, media):
        path = self._files().get(name)
        if path is None:
            self._send(404, b'{"error": {"code": 404, "message": "Not Found"}}')
        elif not media:
            self._json(self._facts(name, path))
        else:
            self._media(path.read_bytes())

    def _media(self, data):
        wanted = self.headers.get("Range")
        if not wanted:
            self._send(200, data)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if not first:
            first, last = max(0, len(data) - int(last)), len(data) - 1
        first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
        span = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], {"Content-Range": span})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for key, value in {"x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        with contextlib.suppress(BrokenPipeError):  # whoever asked may have seen enough
            self.end_headers()
            self.wfile.write(data)


@contextlib.contextmanager
def serve(root):
    """Serves a folder as every bucket; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root = root
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

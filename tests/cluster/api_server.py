"""A Kubernetes API server in memory, with what helm 4 and kubectl ask of one: discovery, reads, watches, server-side apply,
dry runs, deletes, logs. There are no accounts, no admission plugins and no schemas: those are checked by `.ci/helm`.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import protobuf
from discovery import discovery
from store import DEPLOYMENT, KINDS, NAMESPACE, POD, SECRET, Kind, NotFound, Object, Store, is_selected, now

PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v\w+)/(?:namespaces/(?P<namespace>[^/]+)/)?"
    r"(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
WATCH_POLL_SECONDS = 1.0


class Refused(Exception):
    """An answer that is a failure, in the words of the API."""

    def __init__(self, code: int, reason: str, message: str):
        super().__init__(message)
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }


def check(kind: Kind, new: Object, old: Object | None) -> None:
    """What a real server refuses although any schema allows it, as far as a chart can get it wrong."""

    def invalid(what: str) -> Refused:
        return Refused(422, "Invalid", f"{kind.name} {new['metadata']['name']!r} is invalid: {what}")

    if not NAME.match(new["metadata"]["name"]):
        raise invalid("metadata.name: it has to be a DNS subdomain")
    if kind == DEPLOYMENT:
        selector = new["spec"]["selector"]
        if not is_selected(new["spec"]["template"], selector["matchLabels"]):
            raise invalid("spec.template.metadata.labels: spec.selector does not match them")
        if old and selector != old["spec"]["selector"]:
            raise invalid("spec.selector: field is immutable")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ApiServer"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(lambda: self._write(create=True))

    def do_PUT(self) -> None:
        self._answer(lambda: self._write(replace=True))

    def do_PATCH(self) -> None:
        self._answer(lambda: self._write())

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, handle: Callable[[], None]) -> None:
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query))
        self.url = url.path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            handle()
        except NotFound as missing:
            self._send(Refused(404, "NotFound", str(missing)).status, 404)
        except Refused as refused:
            self._send(refused.status, refused.status["code"])

    def _send(self, answer: Object | str, code: int = 200) -> None:
        media, text = ("text/plain", answer) if isinstance(answer, str) else ("application/json", json.dumps(answer))
        self.send_response(code)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _target(self) -> tuple[Kind, str, str | None, str | None]:
        """Kind, namespace, name and subresource that the path names."""
        path = self.url
        if re.match(r"/api/v1/namespaces/[^/]+$", path):
            return NAMESPACE, "", path.rsplit("/", 1)[1], None
        found = PATH.match(path)
        if found:
            api = "/".join(filter(None, (found["group"], found["version"])))
            for kind in KINDS:
                if (kind.api, kind.plural) == (api, found["plural"]):
                    return kind, found["namespace"] or "", found["name"], found["sub"]
        raise NotFound(f"the server could not find the requested resource {path}")

    def _get(self) -> None:
        fixed = discovery(self.url)
        if fixed:
            return self._send(fixed)
        store = self.server.store
        kind, namespace, name, sub = self._target()
        if sub == "log":
            return self._send(self.server.log_of(store.get(kind, namespace, name or "")))
        if sub:
            raise NotFound(f"there is no subresource {sub}")
        if name:
            return self._send(store.get(kind, namespace, name))
        if self.query.get("watch") in ("1", "true"):
            return self._watch(kind, namespace or None)
        version, items = store.snapshot(kind, namespace or None)
        metadata = {"resourceVersion": str(version)}
        found = [it for it in items if self._is_asked_for(it)]
        self._send({"kind": f"{kind.name}List", "apiVersion": kind.api, "metadata": metadata, "items": found})

    def _is_asked_for(self, it: Object) -> bool:
        pairs = [pair.split("=", 1) for pair in self.query.get("labelSelector", "").split(",") if pair]
        labels = {name.rstrip("="): value.lstrip("=") for name, value in pairs}
        field, _, value = self.query.get("fieldSelector", "").partition("=")
        if field not in ("", "metadata.name"):
            raise Refused(400, "BadRequest", f"field selector {field} is not known here")
        return is_selected(it, labels) and (not field or it["metadata"]["name"] == value.lstrip("="))

    def _watch(self, kind: Kind, namespace: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        version = int(self.query.get("resourceVersion") or 0)
        end = time.monotonic() + float(self.query.get("timeoutSeconds", 300))
        try:
            if self.query.get("sendInitialEvents") == "true" or not version:
                version, items = self.server.store.snapshot(kind, namespace)
                for it in items:
                    self._tell("ADDED", it)
            if self.query.get("sendInitialEvents") == "true":
                # Who asks so waits for it before it believes that it has seen everything.
                metadata = {"resourceVersion": str(version), "annotations": {"k8s.io/initial-events-end": "true"}}
                self._tell("BOOKMARK", {"kind": kind.name, "apiVersion": kind.api, "metadata": metadata})
            while time.monotonic() < end:
                for change in self.server.store.changes(version, WATCH_POLL_SECONDS):
                    version = change.version
                    if change.kind == kind and namespace in (None, change.object["metadata"].get("namespace")):
                        self._tell(change.type, change.object)
            self._chunk(b"")
        except OSError:
            # Who watched has gone.
            self.close_connection = True

    def _tell(self, type: str, it: Object) -> None:
        if type == "BOOKMARK" or self._is_asked_for(it):
            self._chunk(json.dumps({"type": type, "object": it}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _write(self, create: bool = False, replace: bool = False) -> None:
        """POST, PUT and server-side apply. Helm alone applies here: so an apply says all of an object but its status."""
        store = self.server.store
        kind, namespace, name, _ = self._target()
        new = self._decoded(kind)
        metadata = new["metadata"]
        metadata.setdefault("name", name)
        if kind.namespaced:
            metadata["namespace"] = namespace
        try:
            old = store.get(kind, namespace, metadata["name"])
        except NotFound:
            if replace:
                raise
            old = None
        if create and old:
            raise Refused(409, "AlreadyExists", f'{kind.plural} "{metadata["name"]}" already exists')
        if old and metadata.get("resourceVersion", "") not in ("", old["metadata"]["resourceVersion"]):
            raise Refused(409, "Conflict", f'{kind.plural} "{metadata["name"]}" has been modified')
        if old and "status" in old:
            new["status"] = old["status"]
        check(kind, new, old)
        if "dryRun" not in self.query:
            new = store.put(kind, new)
        self._send(new | {"apiVersion": kind.api, "kind": kind.name}, 200 if old else 201)

    def _decoded(self, kind: Kind) -> Object:
        media = self.headers.get("Content-Type", "")
        if media == "application/vnd.kubernetes.protobuf" and kind == SECRET:
            return protobuf.secret(self.body)
        # What clients apply is written as JSON, which is YAML, too.
        if media in ("application/json", "application/apply-patch+yaml"):
            return json.loads(self.body)
        raise Refused(415, "UnsupportedMediaType", f"{self.command} of {kind.plural} as {media} is not known here")

    def _delete(self) -> None:
        kind, namespace, name, _ = self._target()
        self._send(delete(self.server.store, kind, namespace, name or ""))


def delete(store: Store, kind: Kind, namespace: str, name: str) -> Object:
    """A pod is only marked: the kubelet removes it when its process has ended."""
    if kind == POD:
        return store.update(kind, namespace, name, lambda pod: pod["metadata"].setdefault("deletionTimestamp", now()))
    return store.remove(kind, namespace, name)


class ApiServer(ThreadingHTTPServer):
    """On a free port of loopback. `log_of` reads the log of a pod."""

    daemon_threads = True

    def __init__(self, store: Store, log_of: Callable[[Object], str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = store
        self.log_of = log_of
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return "http://%s:%d" % self.server_address[:2]

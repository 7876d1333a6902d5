"""Kubernetes' protobuf, as far as Helm sends it: typed clients write Secrets, in which releases are kept, in no other form.

The numbers are those of `generated.proto` in k8s.io/api/core/v1 and k8s.io/apimachinery.
"""

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\0"
METADATA = {1: "name", 3: "namespace", 6: "resourceVersion", 11: "labels", 12: "annotations"}
SECRET = {1: "metadata", 2: "data", 3: "type"}
MAPS = {"labels", "annotations", "data"}


def secret(body: bytes) -> dict[str, Any]:
    """A Secret within the envelope `runtime.Unknown`, as the JSON of the API."""
    if not body.startswith(MAGIC):
        raise ValueError("no envelope of Kubernetes")
    raw = dict(_fields(body[len(MAGIC) :]))[2]
    read = _message(raw, SECRET)
    read["metadata"] = _message(read["metadata"], METADATA)
    return {
        "metadata": {name: _text(value) for name, value in read["metadata"].items()},
        "data": {name: base64.b64encode(value).decode() for name, value in read.get("data", {}).items()},
        "type": _text(read.get("type", b"Opaque")),
    }


def _text(value: Any) -> Any:
    return {name: it.decode() for name, it in value.items()} if isinstance(value, dict) else value.decode()


def _message(data: bytes, names: dict[int, str]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for number, value in _fields(data):
        name = names.get(number)
        if name in MAPS:
            entry = dict(_fields(value))
            read.setdefault(name, {})[entry.get(1, b"").decode()] = entry.get(2, b"")
        elif name:
            read[name] = value
    # An empty text is one that is not set.
    return {name: value for name, value in read.items() if value != b""}


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The pairs of number and value: varints as int, the rest as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        match tag & 7:
            case 0:
                yield tag >> 3, varint()
            case 2:
                size = varint()
                yield tag >> 3, data[at : at + size]
                at += size
            case other:
                raise ValueError(f"wire type {other}, which none of the messages here has")

"""A pod's spec, resolved: the files of its volumes, and its container's environment."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from store import CONFIG_MAP, SECRET, Object, Store

DEFAULT_MODE = 0o644
REFERENCE = re.compile(r"\$\((\w+)\)")


@dataclass(frozen=True)
class File:
    path: str
    content: bytes
    mode: int
    is_sub_path: bool


def files(store: Store, namespace: str, spec: Object) -> list[File]:
    """What the container's mounts bring. NotFound if an object that a volume names is not there (yet)."""
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    found = []
    for mount in spec["containers"][0].get("volumeMounts", []):
        sub_path = mount.get("subPath")
        for name, content, mode in _volume(store, namespace, volumes[mount["name"]]):
            if sub_path in (None, name):
                path = mount["mountPath"] if sub_path else f"{mount['mountPath']}/{name}"
                found.append(File(path, content, mode, sub_path is not None))
    return found


def _volume(store: Store, namespace: str, volume: Object) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and mode of each file in a volume."""
    if "secret" in volume:
        source = volume["secret"]
        content = _content(store.get(SECRET, namespace, source["secretName"]))
    elif "configMap" in volume:
        source = volume["configMap"]
        content = _content(store.get(CONFIG_MAP, namespace, source["name"]))
    elif "csi" in volume:
        # What its driver fetches is kept as a Secret of the class's name.
        source = volume["csi"]
        content = _content(store.get(SECRET, namespace, source["volumeAttributes"]["secretProviderClass"]))
    else:
        raise ValueError(f"volume {volume['name']}: only Secrets, ConfigMaps and CSI's files are known here")
    for name in content:
        yield name, content[name], source.get("defaultMode", DEFAULT_MODE)


def _content(it: Object) -> dict[str, bytes]:
    data = it.get("data", {})
    if it["kind"] == "ConfigMap":
        return {name: text.encode() for name, text in data.items()}
    return {name: base64.b64decode(text) for name, text in data.items()}


def environment(pod: Object, container: Object, address: str) -> dict[str, str]:
    """The variables of the spec, and the two that each container has."""
    metadata = pod["metadata"]
    found = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOSTNAME": metadata["name"]}
    fields = {"metadata.name": metadata["name"], "metadata.namespace": metadata["namespace"], "status.podIP": address}
    for variable in container.get("env", []):
        value = variable.get("value", "")
        if "valueFrom" in variable:
            value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        found[variable["name"]] = expand(value, found)
    return found


def expand(text: str, variables: dict[str, str]) -> str:
    """`$(NAME)`, where there is such a variable."""
    return REFERENCE.sub(lambda found: variables.get(found[1], found[0]), text)

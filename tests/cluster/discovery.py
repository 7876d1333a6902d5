"""What a client asks an API server first: which kinds there are, and, by OpenAPI, whether it checks fields."""

from store import KINDS, Kind, Object

# The newest minor that the chart is checked for; `Chart.yaml` has the oldest.
VERSION = {"major": "1", "minor": "35", "gitVersion": "v1.35.0", "platform": "linux/amd64"}
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete"]


def discovery(path: str) -> Object | None:
    """The answer to one of the fixed paths."""
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return _groups()
    if path == "/openapi/v3":
        apis = sorted({f"apis/{kind.api}" if "/" in kind.api else f"api/{kind.api}" for kind in KINDS})
        return {"paths": {api: {"serverRelativeURL": f"/openapi/v3/{api}"} for api in apis}}
    api = path.removeprefix("/openapi/v3").removeprefix("/apis/").removeprefix("/api/")
    kinds = [kind for kind in KINDS if kind.api == api]
    if not kinds:
        return None
    return _open_api(path, kinds) if path.startswith("/openapi/") else _resources(api, kinds)


def _groups() -> Object:
    groups = []
    for api in sorted({kind.api for kind in KINDS if "/" in kind.api}):
        group, version = api.split("/")
        told = {"groupVersion": api, "version": version}
        groups.append({"name": group, "versions": [told], "preferredVersion": told})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(api: str, kinds: list[Kind]) -> Object:
    resources = [
        {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "kind": kind.name,
            "namespaced": kind.namespaced,
            "verbs": VERBS,
        }
        for kind in kinds
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}


def _open_api(path: str, kinds: list[Kind]) -> Object:
    """The kinds with nothing but the parameter for whose sake clients ask."""
    paths = {}
    for kind in kinds:
        group, _, version = kind.api.rpartition("/")
        operation = {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {},
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind.name},
        }
        paths[f"{path}/{kind.plural}/{{name}}"] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]}, "paths": paths}

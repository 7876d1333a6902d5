"""What an API server keeps: objects by kind and name. Each change has a version, so that who watches misses none."""

import copy
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A row of the table of kinds."""

    api: str
    name: str
    plural: str
    namespaced: bool = True


POD = Kind("v1", "Pod", "pods")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
SERVICE = Kind("v1", "Service", "services")
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")

# The kinds with a controller first; the others are only kept, as by a cluster whose operators are away.
KINDS = [
    POD,
    SECRET,
    CONFIG_MAP,
    SERVICE,
    NAMESPACE,
    DEPLOYMENT,
    REPLICA_SET,
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Kind("gateway.networking.k8s.io/v1", "GRPCRoute", "grpcroutes"),
    Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
    Kind("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules"),
    Kind("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"),
    Kind("networking.k8s.io/v1", "Ingress", "ingresses"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
]


class NotFound(Exception):
    """There is no such object."""


@dataclass(frozen=True)
class Change:
    """What a watch tells."""

    version: int
    type: str
    kind: Kind
    object: Object


def now() -> str:
    # With its fractions: minReadySeconds counts from it.
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_since(time_told: str) -> float:
    return time.time() - datetime.fromisoformat(time_told).timestamp()


class Store:
    """Every method may be called from any thread. What is given out is a copy, and what is put in is not changed later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._objects: dict[tuple[Kind, str, str], Object] = {}
        self._history: list[Change] = []

    @property
    def version(self) -> int:
        return len(self._history)

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        return self.snapshot(kind, namespace)[1]

    def snapshot(self, kind: Kind, namespace: str | None) -> tuple[int, list[Object]]:
        """The objects together with the version after which a watch goes on."""
        with self._changed:
            found = [it for key, it in self._objects.items() if key[0] == kind and namespace in (None, key[1])]
            return self.version, copy.deepcopy(found)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        with self._changed:
            try:
                return copy.deepcopy(self._objects[kind, namespace, name])
            except KeyError:
                raise NotFound(f'{kind.plural} "{name}" not found') from None

    def put(self, kind: Kind, given: Object) -> Object:
        """Creates or replaces. What only a server may set is taken over from what there is."""
        with self._changed:
            new = copy.deepcopy(given)
            metadata = new["metadata"]
            key = (kind, metadata.get("namespace", ""), metadata["name"])
            old = self._objects.get(key)
            new |= {"apiVersion": kind.api, "kind": kind.name}
            kept = old["metadata"] if old else {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            metadata |= {name: kept[name] for name in ("uid", "creationTimestamp", "generation")}
            if old and new.get("spec") != old.get("spec"):
                metadata["generation"] += 1
            metadata["resourceVersion"] = old["metadata"]["resourceVersion"] if old else ""
            if new == old:
                return copy.deepcopy(new)
            self._objects[key] = new
            self._tell("MODIFIED" if old else "ADDED", kind, new)
            return copy.deepcopy(new)

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], object]) -> Object:
        """Changes an object in place, while nobody else does."""
        with self._changed:
            it = self.get(kind, namespace, name)
            change(it)
            return self.put(kind, it)

    def remove(self, kind: Kind, namespace: str, name: str) -> Object:
        with self._changed:
            it = self.get(kind, namespace, name)
            del self._objects[kind, namespace, name]
            self._tell("DELETED", kind, it)
            return it

    def changes(self, after: int, timeout: float) -> list[Change]:
        """What came after a version; waits for it, and gives nothing at the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > after, timeout)
            return self._history[after:]

    def _tell(self, type: str, kind: Kind, it: Object) -> None:
        it["metadata"]["resourceVersion"] = str(self.version + 1)
        self._history.append(Change(self.version + 1, type, kind, copy.deepcopy(it)))
        self._changed.notify_all()


def is_selected(it: Object, labels: dict[str, str]) -> bool:
    return labels.items() <= it["metadata"].get("labels", {}).items()


def condition(it: Object, type: str) -> Object:
    """One of the conditions of a status; empty where it has none of the type."""
    return next((it for it in it.get("status", {}).get("conditions", []) if it["type"] == type), {})

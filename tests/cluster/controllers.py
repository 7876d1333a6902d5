"""What in a cluster turns a Deployment into pods, and Services into names: the rolling update as Kubernetes does it.

One thread looks at everything after every change, so that no controller depends on having seen a particular one.
"""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable

from api_server import delete
from store import (
    DEPLOYMENT,
    KINDS,
    POD,
    REPLICA_SET,
    SERVICE,
    Kind,
    NotFound,
    Object,
    Store,
    condition,
    is_selected,
    seconds_since,
)

HASH = "pod-template-hash"
# Time passes for minReadySeconds while nothing changes.
TICK_SECONDS = 0.2


class Controllers:
    def __init__(self, store: Store, name_hosts: Callable[[str], None]):
        self._store = store
        self._name_hosts = name_hosts
        self._hosts = ""
        self._serial = itertools.count(1)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        version = 0
        while True:
            changes = self._store.changes(version, TICK_SECONDS)
            version = changes[-1].version if changes else version
            try:
                self._look()
            except NotFound:
                # Somebody removed what was being looked at; there is a change that tells so.
                continue

    def _look(self) -> None:
        self._collect_garbage()
        for deployment in self._store.all(DEPLOYMENT):
            self._roll(deployment)
        for replica_set in self._store.all(REPLICA_SET):
            self._scale(replica_set)
        self._name_services()

    def _collect_garbage(self) -> None:
        """Removes what belonged to something that is gone."""
        everything = [(kind, it) for kind in KINDS for it in self._store.all(kind)]
        uids = {it["metadata"]["uid"] for _, it in everything}
        for kind, it in everything:
            metadata = it["metadata"]
            owners = metadata.get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                delete(self._store, kind, metadata["namespace"], metadata["name"])

    def _owned(self, kind: Kind, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [
            it
            for it in self._store.all(kind, owner["metadata"]["namespace"])
            if any(reference["uid"] == uid for reference in it["metadata"].get("ownerReferences", []))
        ]

    def _pods(self, replica_set: Object) -> list[Object]:
        return [pod for pod in self._owned(POD, replica_set) if "deletionTimestamp" not in pod["metadata"]]

    def _roll(self, deployment: Object) -> None:
        """One step of the rolling update: as many new pods as the surge allows, and away with old ones as new are available."""
        spec = deployment["spec"]
        sets = self._owned(REPLICA_SET, deployment)
        current = self._current(deployment, sets)
        old = [it for it in sets if it["metadata"]["uid"] != current["metadata"]["uid"]]
        available = {it["metadata"]["name"]: self._available(spec, self._pods(it)) for it in [current, *old]}
        surge, unavailable = (spec["strategy"]["rollingUpdate"][name] for name in ("maxSurge", "maxUnavailable"))
        wanted = spec.get("replicas", 1)

        room = wanted + surge - sum(it["spec"]["replicas"] for it in [current, *old])
        self._resize(current, min(wanted, current["spec"]["replicas"] + max(0, room)))
        spare = max(0, sum(available.values()) - (wanted - unavailable))
        for it in old:
            # Those that are not available are no loss.
            lost = it["spec"]["replicas"] - available[it["metadata"]["name"]]
            left = max(0, it["spec"]["replicas"] - lost - spare)
            spare -= it["spec"]["replicas"] - lost - left
            self._resize(it, left)
        self._tell_deployment(deployment, current, old, sum(available.values()))

    def _current(self, deployment: Object, sets: list[Object]) -> Object:
        """The ReplicaSet of the template as it is now, which may be from an earlier rollout."""
        template = deployment["spec"]["template"]
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        for it in sets:
            if it["metadata"]["labels"][HASH] == digest:
                return it
        labels = template["metadata"]["labels"] | {HASH: digest}
        metadata = template["metadata"] | {"labels": labels}
        return self._store.put(
            REPLICA_SET,
            {
                "metadata": self._child(deployment, "Deployment", digest) | {"labels": labels},
                "spec": {
                    "replicas": 0,
                    "selector": {"matchLabels": labels},
                    "template": template | {"metadata": metadata},
                },
            },
        )

    def _child(self, owner: Object, kind: str, suffix: str) -> Object:
        metadata = owner["metadata"]
        reference = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
        }
        return {
            "name": f"{metadata['name']}-{suffix}",
            "namespace": metadata["namespace"],
            "ownerReferences": [reference],
        }

    def _resize(self, replica_set: Object, replicas: int) -> None:
        metadata = replica_set["metadata"]
        self._store.update(
            REPLICA_SET, metadata["namespace"], metadata["name"], lambda it: it["spec"].update(replicas=replicas)
        )

    def _scale(self, replica_set: Object) -> None:
        # The ones that are ready last: they go last.
        pods = sorted(self._pods(replica_set), key=is_ready)
        wanted = replica_set["spec"]["replicas"]
        template = replica_set["spec"]["template"]
        for _ in range(len(pods), wanted):
            metadata = template["metadata"] | self._child(replica_set, "ReplicaSet", str(next(self._serial)))
            self._store.put(POD, {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})
        for pod in pods[: max(0, len(pods) - wanted)]:
            delete(self._store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        status = {
            "replicas": len(pods),
            "readyReplicas": sum(map(is_ready, pods)),
            "observedGeneration": replica_set["metadata"]["generation"],
        }
        self._tell(REPLICA_SET, replica_set, status)

    @staticmethod
    def _available(spec: Object, pods: Iterable[Object]) -> int:
        return sum(
            is_ready(pod)
            and seconds_since(condition(pod, "Ready")["lastTransitionTime"]) >= spec.get("minReadySeconds", 0)
            for pod in pods
        )

    def _tell_deployment(self, deployment: Object, current: Object, old: list[Object], available: int) -> None:
        """The status as `kubectl rollout` and Helm's kstatus read it."""
        new = self._pods(current)
        pods = new + [pod for it in old for pod in self._pods(it)]
        wanted = deployment["spec"].get("replicas", 1)
        is_done = len(pods) == len(new) == available == wanted
        self._tell(
            DEPLOYMENT,
            deployment,
            {
                "observedGeneration": deployment["metadata"]["generation"],
                "replicas": len(pods),
                "updatedReplicas": len(new),
                "readyReplicas": sum(map(is_ready, pods)),
                "availableReplicas": available,
                "unavailableReplicas": max(0, wanted - available),
                "conditions": [
                    {"type": "Available", "status": str(available >= wanted), "reason": "MinimumReplicasAvailable"},
                    {
                        "type": "Progressing",
                        "status": "True",
                        "reason": "NewReplicaSetAvailable" if is_done else "ReplicaSetUpdated",
                    },
                ],
            },
        )

    def _tell(self, kind: Kind, it: Object, status: Object) -> None:
        metadata = it["metadata"]
        self._store.update(kind, metadata["namespace"], metadata["name"], lambda it: it.update(status=status))

    def _name_services(self) -> None:
        """The cluster's DNS is a file of hosts. A ClusterIP is the address of one ready pod, a headless Service those of all."""
        lines = ["127.0.0.1 localhost"]
        for service in self._store.all(SERVICE):
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            pods = [pod for pod in self._store.all(POD, namespace) if is_selected(pod, service["spec"]["selector"])]
            addresses = [
                pod["status"]["podIP"] for pod in pods if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]
            ]
            if service["spec"].get("clusterIP") != "None":
                addresses = addresses[:1]
            names = f"{name} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local"
            lines += [f"{address} {names}" for address in addresses]
        text = "".join(f"{line}\n" for line in lines)
        if self._hosts != text:
            self._hosts = text
            self._name_hosts(text)


def is_ready(pod: Object) -> bool:
    return condition(pod, "Ready").get("status") == "True"

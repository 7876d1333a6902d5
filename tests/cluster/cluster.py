"""A cluster of one node with helm before it, and what a test asks of the two."""

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from api_server import ApiServer
from controllers import Controllers
from kubelet import NODE, Event, Kubelet
from store import KINDS, NAMESPACE, POD, SECRET, Object, Store

IN_NAMESPACE = "conversations"
TWILIO_PORT = 8080
TWILIO = f"http://{NODE}:{TWILIO_PORT}"
DEADLINE_SECONDS = 110


class Differs(Exception):
    """Something is not as it should be."""


class Cluster:
    def __init__(self, gateway: Path, chart: Path, work: Path):
        self.store = Store()
        self._kubelet = Kubelet(self.store, gateway, work)
        self._server = ApiServer(self.store, self._kubelet.log_of)
        Controllers(self.store, self._kubelet.name_hosts)
        self._gateway = gateway
        self._chart = chart
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(work),
            "KUBECONFIG": str(work / "kubeconfig"),
            "HELM_NAMESPACE": IN_NAMESPACE,
        }
        self._write_kubeconfig(work / "kubeconfig")
        print(f"an API server on {self._server.url}")

    def _write_kubeconfig(self, path: Path) -> None:
        config = {
            "clusters": [{"name": "test", "cluster": {"server": self._server.url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": IN_NAMESPACE}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))

    def run(self, *words: str, fails: bool = False) -> str:
        """What a command prints. It has to end with 0, or, where it is to fail, with something else."""
        done = subprocess.run(
            words,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        if (done.returncode != 0) != fails:
            raise Differs(f"{' '.join(words)} ends with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def release(self, command: str, name: str, *options: str, fails: bool = False) -> str:
        """`helm install` or `helm upgrade` with the chart."""
        return self.run("helm", command, name, str(self._chart), *options, fails=fails)

    def values_file(self, name: str) -> str:
        return str(self._chart / "ci" / f"{name}-values.yaml")

    def start_twilio(self) -> None:
        """The sandbox by itself, outside the pods."""
        subprocess.Popen(
            [self._gateway, "sandbox", "--listen", f"{NODE}:{TWILIO_PORT}"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def listens() -> bool:
            with socket.socket() as trial:
                return trial.connect_ex((NODE, TWILIO_PORT)) == 0

        self.until("the fake Twilio listens", listens)

    def put_secret(self, name: str, content: dict[str, str]) -> None:
        data = {key: base64.b64encode(text.encode()).decode() for key, text in content.items()}
        self.store.put(SECRET, {"metadata": {"name": name, "namespace": IN_NAMESPACE}, "data": data})

    def objects(self) -> dict[str, Object]:
        """Everything but namespaces."""
        kinds = [kind for kind in KINDS if kind != NAMESPACE]
        return {f"{kind.name}/{it['metadata']['name']}": it for kind in kinds for it in self.store.all(kind)}

    def timeline(self, since: float = 0.0) -> list[Event]:
        """What happened to pods, in its order."""
        return [event for event in list(self._kubelet.timeline) if event.at >= since]

    def logs(self) -> str:
        """The last lines of each pod that is there."""
        told = {pod["metadata"]["name"]: self._kubelet.log_of(pod).splitlines()[-8:] for pod in self.store.all(POD)}
        return "\n".join("\n".join([f"--- the last log lines of {name}:", *lines]) for name, lines in told.items())

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_SECONDS
        while not is_so():
            if time.monotonic() > end:
                raise Differs(f"not within {DEADLINE_SECONDS} s: {what}")
            time.sleep(0.1)

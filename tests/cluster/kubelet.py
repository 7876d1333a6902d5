"""Runs pods for real: each as a process of the gateway's binary, in a network of its own with an address of its own, below a
root that holds nothing but what its image does and the volumes of the spec, as the uid of the spec. So ports, paths,
files' modes and arguments are literally those that the chart rendered, and its gRPC probes decide what is ready.

It takes root, or a user namespace, and namespaces for network and mounts that are thrown away: see `.ci/cluster`. Limits,
capabilities and seccomp are not applied: `.ci/image` does. A pod has one container here.
"""

import itertools
import os
import re
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pod_spec
from probes import Probes
from store import CONFIG_MAP, POD, SECRET, NotFound, Object, Store, condition, now

BRIDGE, BRIDGE_ADDRESS = "cluster", "02:00:00:00:00:01"
NODE, PREFIX = "10.77.0.1", 24
BINARY = "/usr/local/bin/participant-gateway"
# The gateway does not start without any: every base of an image for it brings them.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# Names come from the hosts file only: there is no DNS server.
NSSWITCH = "hosts: files\n"
NSENTER, CHROOT = (shutil.which(name) or name for name in ("nsenter", "chroot"))
TICK_SECONDS = 0.1
# As Kubernetes begins; it doubles.
FIRST_BACKOFF_SECONDS = 10.0


def run(*command: object) -> None:
    subprocess.run([str(it) for it in command], check=True, stdin=subprocess.DEVNULL)


def can_be_anybody() -> bool:
    """Whether other uids than root's exist here: they do not in the user namespace of an ordinary user."""
    return any(int(line.split()[2]) > 1 for line in Path("/proc/self/uid_map").read_text().splitlines())


def replace(path: Path, content: bytes, mode: int = 0o644, group: int = 0) -> None:
    """Who reads the file sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    if can_be_anybody():
        os.chown(new, 0, group)
    new.chmod(mode)
    new.rename(path)


@dataclass(frozen=True)
class Event:
    """What happened to a pod, for who asks in which order things went."""

    at: float
    pod: str
    what: str


class Kubelet:
    """The one node. Its image is a folder, from which each pod gets its root by hard links."""

    def __init__(self, store: Store, binary: Path, work: Path):
        self.store = store
        self.work = work
        self.image = work / "image"
        self.timeline: list[Event] = []
        self._hosts = b""
        self._own_hosts = work / "hosts"
        self._addresses = itertools.count(2)
        self._pods: dict[str, Pod] = {}
        self._build_image(binary)
        # An address of its own: else it takes a pod's, changes it with them, and what others remember of it goes nowhere.
        run("ip", "link", "add", BRIDGE, "address", BRIDGE_ADDRESS, "type", "bridge")
        run("ip", "address", "add", f"{NODE}/{PREFIX}", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # The test itself calls Services, too.
        self._own_hosts.touch()
        run("mount", "--bind", self._own_hosts, "/etc/hosts")
        threading.Thread(target=self._run, daemon=True).start()

    def log_of(self, pod: Object) -> str:
        log = self.log_file(pod)
        return log.read_text(errors="replace") if log.exists() else ""

    def log_file(self, pod: Object) -> Path:
        # Not by its name, which the next test has, too.
        return self.work / f"{pod['metadata']['uid']}.log"

    def name_hosts(self, text: str) -> None:
        """What the pods resolve names by, from now on."""
        self._hosts = text.encode()
        # In place, because it is mounted.
        self._own_hosts.write_text(text)
        for pod in list(self._pods.values()):
            pod.name_hosts(self._hosts)

    def _build_image(self, binary: Path) -> None:
        libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", binary], capture_output=True, text=True).stdout)
        for source, inside in [*((it, it) for it in [*libraries, AUTHORITIES]), (str(binary), BINARY)]:
            target = self.image / inside.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        replace(self.image / "etc/nsswitch.conf", NSSWITCH.encode())

    def _run(self) -> None:
        version = 0
        while True:
            for change in self.store.changes(version, timeout=60):
                version = change.version
                if change.kind == POD:
                    self._see(change.type, change.object)
                elif change.kind in (SECRET, CONFIG_MAP):
                    for pod in list(self._pods.values()):
                        pod.volumes_changed.set()

    def _see(self, type: str, it: Object) -> None:
        uid = it["metadata"]["uid"]
        if type == "DELETED":
            del self._pods[uid]
            return
        if uid not in self._pods:
            self._pods[uid] = Pod(self, it, f"10.77.0.{next(self._addresses)}", self._hosts)
        if "deletionTimestamp" in it["metadata"]:
            self._pods[uid].deleted.set()


class Pod:
    """One pod from its start to its end, in a thread of its own."""

    def __init__(self, kubelet: Kubelet, it: Object, address: str, hosts: bytes):
        self.deleted = threading.Event()
        self.volumes_changed = threading.Event()
        self._kubelet = kubelet
        self._store = kubelet.store
        self._it = it
        self._namespace, self._name = it["metadata"]["namespace"], it["metadata"]["name"]
        self._spec = it["spec"]
        (self._container,) = self._spec["containers"]
        self._address = address
        self._network = f"pod-{address.rpartition('.')[2]}"
        # The layer is written from outside; the process sees it by a mount, which may be read-only.
        self._layer = kubelet.work / "layers" / self._network
        self._root = kubelet.work / "roots" / self._network
        self._ready = False
        self._restarts = 0
        shutil.copytree(kubelet.image, self._layer, copy_function=os.link)
        self.name_hosts(hosts)
        threading.Thread(target=self._run, daemon=True).start()

    def name_hosts(self, hosts: bytes) -> None:
        replace(self._layer / "etc/hosts", hosts)

    def _run(self) -> None:
        self._join_network()
        self._mount_root()
        try:
            self._live()
        finally:
            run("umount", self._root)
            run("ip", "netns", "delete", self._network)
        self.deleted.wait()
        self._store.remove(POD, self._namespace, self._name)

    def _join_network(self) -> None:
        inside, outside = self._network, f"{self._network}-eth0"
        run("ip", "netns", "add", inside)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
        run("ip", "link", "set", outside, "master", BRIDGE, "up")
        run("ip", "-n", inside, "link", "set", "lo", "up")
        run("ip", "-n", inside, "address", "add", f"{self._address}/{PREFIX}", "dev", "eth0")
        run("ip", "-n", inside, "link", "set", "eth0", "up")

    def _mount_root(self) -> None:
        self._root.mkdir(parents=True)
        run("mount", "--bind", self._layer, self._root)
        if self._container["securityContext"]["readOnlyRootFilesystem"]:
            run("mount", "-o", "remount,bind,ro", self._root)

    def _live(self) -> None:
        """Runs the container until the pod is deleted, or ended as its restartPolicy has it."""
        backoff = FIRST_BACKOFF_SECONDS
        environment = pod_spec.environment(self._it, self._container, self._address)
        self._write_volumes()
        while not self.deleted.is_set():
            code = self._run_container(environment)
            if self._spec.get("restartPolicy") == "Never":
                self._tell("Failed" if code else "Succeeded", {"terminated": {"exitCode": code}})
                return
            self._restarts += 1
            self._tell("Running", {"waiting": {"reason": "CrashLoopBackOff"}})
            self.deleted.wait(backoff)
            backoff *= 2

    def _write_volumes(self, is_update: bool = False) -> None:
        group = self._spec["securityContext"]["fsGroup"]
        for file in pod_spec.files(self._store, self._namespace, self._spec):
            # What is mounted by subPath does not follow changes.
            if not (is_update and file.is_sub_path):
                replace(self._layer / file.path.lstrip("/"), file.content, file.mode, group)

    def _run_container(self, environment: dict[str, str]) -> int:
        """The container from its start to its end, which its probes or the pod's deletion may bring about."""
        with open(self._kubelet.log_file(self._it), "ab") as log:
            process = subprocess.Popen(
                self._command(environment), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._note("started")
        self._tell("Running", {"running": {"startedAt": now()}})
        probes = Probes(self._container, self._address)
        while process.poll() is None:
            if self.deleted.is_set():
                self._stop(process, self._container.get("lifecycle", {}).get("preStop", {}))
            elif probes.is_dead():
                self._note("did not answer its probes")
                self._stop(process, {})
            else:
                if self.volumes_changed.is_set():
                    self.volumes_changed.clear()
                    # Where an object is gone, as at the end of a release, what is mounted stays.
                    with suppress(NotFound):
                        self._write_volumes(is_update=True)
                self._set_ready(probes.is_ready())
                self.deleted.wait(TICK_SECONDS)
        self._note(f"exited with {process.returncode}")
        self._set_ready(False)
        return process.returncode

    def _command(self, environment: dict[str, str]) -> list[str]:
        context = self._spec["securityContext"]
        words = [*self._container.get("command", [BINARY]), *self._container["args"]]
        who = []
        if can_be_anybody():
            who = [f"--userspec={context['runAsUser']}:{context['runAsGroup']}", f"--groups={context['fsGroup']}"]
        # By their paths, because the environment is the container's.
        return [
            NSENTER,
            f"--net=/run/netns/{self._network}",
            CHROOT,
            *who,
            str(self._root),
            *(pod_spec.expand(it, environment) for it in words),
        ]

    def _stop(self, process: subprocess.Popen, pre_stop: Object) -> None:
        deadline = time.monotonic() + self._spec.get("terminationGracePeriodSeconds", 30)
        self._note("terminating")
        if "sleep" in pre_stop:
            time.sleep(pre_stop["sleep"]["seconds"])
        self._note("SIGTERM")
        process.terminate()
        try:
            process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            self._note("SIGKILL")
            process.kill()
            process.wait()

    def _set_ready(self, is_ready: bool) -> None:
        if is_ready != self._ready:
            self._ready = is_ready
            self._note("ready" if is_ready else "not ready")
            self._tell("Running", {"running": {}})

    def _note(self, what: str) -> None:
        self._kubelet.timeline.append(Event(time.monotonic(), self._name, what))

    def _tell(self, phase: str, state: Object) -> None:
        def change(pod: Object) -> None:
            status = {
                "phase": phase,
                "podIP": self._address,
                "hostIP": NODE,
                "containerStatuses": [
                    {
                        "name": self._container["name"],
                        "image": self._container["image"],
                        "ready": self._ready,
                        "restartCount": self._restarts,
                        "state": state,
                    }
                ],
            }
            ready = {"type": "Ready", "status": str(self._ready), "lastTransitionTime": now()}
            before = condition(pod, "Ready")
            status["conditions"] = [before if before.get("status") == ready["status"] else ready]
            pod["status"] = status

        self._store.update(POD, self._namespace, self._name, change)

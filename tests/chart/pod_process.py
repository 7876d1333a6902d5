"""Runs the gateway's container of a rendered Deployment as a process: its args, its environment, its files at their own paths.

The process lives in a folder that it takes for `/`, which holds what the image does, and runs as the user that the pod asks for.
What its volumes and variables hold is resolved by tests/cluster, which has to be on Python's path; what is not known there is an
error, too. Needs root.
"""
import base64
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pod_spec
from render import NAMESPACE
from store import CONFIG_MAP, SECRET, Store

# The image's, by its Dockerfile.
ENTRYPOINT = "/usr/local/bin/participant-gateway"
POD_NAME = "rel-participant-gateway-0"


class Unsupported(Exception):
    """The Deployment asks for something that has to be learned here."""


def store_of(objects, secrets):
    """What a pod's volumes name: what is rendered, and the content of Secrets and of CSI's classes that somebody else brings."""
    store = Store()
    for name, held in secrets.items():
        data = {key: base64.b64encode(text.encode()).decode() for key, text in held.items()}
        store.put(SECRET, {"metadata": {"name": name, "namespace": NAMESPACE}, "data": data})
    for item in objects:
        for kind in (CONFIG_MAP, SECRET):
            if item["kind"] == kind.name:
                store.put(kind, item)
    return store


def write_volumes(root, spec, store):
    """Writes each mount of the container below `root`, as the kubelet does: the pod's group may read it."""
    for file in pod_spec.files(store, NAMESPACE, spec):
        at = root / file.path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(file.content)
        os.chown(at, 0, spec["securityContext"]["fsGroup"])
        at.chmod(file.mode)


def write_image(root, binary):
    """What the image holds: the binary, its libraries, and certificates of authorities."""
    needed = re.findall(r"/\S+", subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout)
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    for source, at in [(binary, ENTRYPOINT), (certificates, certificates), *((path, path) for path in needed)]:
        to = root / at.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)
        shutil.copymode(source, to)


class PodProcess:
    """The pod of one Deployment, as long as the `with` lasts."""

    def __init__(self, template, objects, secrets, binary, folder):
        self.spec = template["spec"]
        (self.container,) = self.spec["containers"]
        if "command" in self.container:
            raise Unsupported("a command in place of the image's entrypoint")
        self.root = Path(folder) / "root"
        self.log = Path(folder) / "log"
        write_image(self.root, binary)
        write_volumes(self.root, self.spec, store_of(objects, secrets))
        self.root.chmod(0o755)

    def __enter__(self):
        security = self.spec["securityContext"]
        chroot = [shutil.which("chroot"), f"--userspec={security['runAsUser']}:{security['runAsGroup']}", f"--groups={security['fsGroup']}"]
        command = [*chroot, self.root, ENTRYPOINT, *self.container["args"]]
        pod = {"metadata": {"name": POD_NAME, "namespace": NAMESPACE}}
        environment = pod_spec.environment(pod, self.container, "127.0.0.1")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def is_running(self):
        return self.process.poll() is None

    def terminate(self, by=signal.SIGTERM, within=60):
        """Sends the signal and waits: the exit code."""
        self.process.send_signal(by)
        return self.process.wait(within)

"""Runs the gateway's container of a rendered Deployment as a process: its args, its environment, its files at their own paths.

The process lives in a folder that it takes for `/`, which holds what the image does, and runs as the user that the pod asks for.
What stands in a Deployment and is not known here is an error: nothing is left out silently. Needs root.
"""
import base64
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

# The image's, by its Dockerfile.
ENTRYPOINT = "/usr/local/bin/participant-gateway"
POD_NAME = "rel-participant-gateway-0"


class Unsupported(Exception):
    """The Deployment asks for something that has to be learned here."""


def environment(container):
    """The container's variables, in which `$(NAME)` stands for one before."""
    variables = {}
    for entry in container.get("env", []):
        if "value" in entry:
            value = re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), entry["value"])
        elif entry.get("valueFrom") == {"fieldRef": {"fieldPath": "metadata.name"}}:
            value = POD_NAME
        else:
            raise Unsupported(f"env {entry}")
        variables[entry["name"]] = value
    return variables


class Files:
    """What a pod's volumes hold: ConfigMaps and Secrets that are rendered, and those that somebody else has to bring."""

    def __init__(self, objects, secrets):
        """`secrets` has the content of Secrets that are not rendered, by name, and of CSI's classes."""
        self.config_maps = {item["metadata"]["name"]: item["data"] for item in objects if item["kind"] == "ConfigMap"}
        self.secrets = dict(secrets)
        for item in objects:
            if item["kind"] == "Secret":
                data = {key: base64.b64decode(value).decode() for key, value in item.get("data", {}).items()}
                self.secrets[item["metadata"]["name"]] = data | item.get("stringData", {})

    def of_volume(self, volume):
        """The volume's files by name, and their mode."""
        rest = {key: value for key, value in volume.items() if key != "name"}
        match rest:
            case {"configMap": {"name": name}}:
                return self.config_maps[name], 0o444
            case {"secret": {"secretName": name, "defaultMode": mode}}:
                return self.secrets[name], mode
            case {"csi": {"volumeAttributes": {"secretProviderClass": name}}}:
                return self.secrets[name], 0o444
        raise Unsupported(f"volume {volume}")


def write_volumes(root, spec, files):
    """Writes each mount of the container below `root`, as the kubelet does: the pod's group may read it."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    group = spec["securityContext"]["fsGroup"]
    for mount in spec["containers"][0]["volumeMounts"]:
        held, mode = files.of_volume(volumes[mount["name"]])
        at = root / mount["mountPath"].lstrip("/")
        if "subPath" in mount:
            written = {at: held[mount["subPath"]]}
        else:
            written = {at / name: text for name, text in held.items()}
        for path, text in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.chown(path, 0, group)
            path.chmod(mode)


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
        write_volumes(self.root, self.spec, Files(objects, secrets))
        self.root.chmod(0o755)

    def __enter__(self):
        security = self.spec["securityContext"]
        chroot = [shutil.which("chroot"), f"--userspec={security['runAsUser']}:{security['runAsGroup']}", f"--groups={security['fsGroup']}"]
        command = [*chroot, self.root, ENTRYPOINT, *self.container["args"]]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment(self.container), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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

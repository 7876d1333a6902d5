"""Pod Security's level `restricted`, as the API server would judge the pods of manifests.

    python3 tests/chart/pod_security.py FILE...

Prints how many pods pass, and what is wrong with the others.
"""
import sys

import yaml

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HOST = ("hostNetwork", "hostPID", "hostIPC")
# Not looked at further: no pod of the chart's has one.
OTHER = ("appArmorProfile", "seLinuxOptions", "windowsOptions", "sysctls")


def pods(objects):
    """Name and spec of each pod, and of each pod that a workload would make."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "Pod":
            yield name, item["spec"]
        elif "template" in item.get("spec", {}):
            yield name, item["spec"]["template"]["spec"]


def violations(spec):
    """What `restricted` refuses of a pod, a line each."""
    pod = spec.get("securityContext", {})
    for field in HOST:
        if spec.get(field):
            yield f"{field} is set"
    if spec.get("hostUsers") is True:
        yield "hostUsers is true"
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if kinds - VOLUMES:
            yield f"the volume {volume['name']} is of the kind {', '.join(kinds)}"
    for field in OTHER:
        if field in pod:
            yield f"securityContext.{field} is set, which this check does not know"
    containers = [*spec["containers"], *spec.get("initContainers", []), *spec.get("ephemeralContainers", [])]
    for container in containers:
        for violation in container_violations(container, pod):
            yield f"{container['name']}: {violation}"


def container_violations(container, pod):
    own = container.get("securityContext", {})

    def effective(field):
        return own.get(field, pod.get(field))

    if own.get("privileged"):
        yield "it is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if effective("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if effective("runAsUser") == 0:
        yield "runAsUser is 0"
    if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "there is no seccompProfile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "not all capabilities are dropped"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if own.get("procMount", "Default") != "Default":
        yield "procMount is set"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "a hostPort is taken"
    for field in OTHER:
        if field in own:
            yield f"securityContext.{field} is set, which this check does not know"


def main():
    passed = total = 0
    for path in sys.argv[1:]:
        with open(path) as file:
            objects = [item for item in yaml.safe_load_all(file) if item]
        for name, spec in pods(objects):
            found = list(violations(spec))
            total += 1
            passed += not found
            for violation in found:
                print(f"{path}: {name}: {violation}")
    print(f"{passed} of {total} pods pass `restricted`")
    sys.exit(passed != total or total == 0)


if __name__ == "__main__":
    main()

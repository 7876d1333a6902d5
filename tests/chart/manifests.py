"""Manifests against the schemas of Kubernetes' minors, and custom resources against their models.

    python3 tests/chart/manifests.py FILE...

Run by .ci/helm, which has kubernetes-validate, and the npm packages that crd.mjs imports.
"""
import json
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

VERSIONS = ("1.35", "1.36", "1.37")
# Of these no model is at hand; test_templates.py says what must be in them.
WITHOUT_MODEL = ("policy.linkerd.io/", "cert-manager.io/")


def load(path):
    with open(path) as file:
        return [item for item in yaml.safe_load_all(file) if item]


def validate(item, version):
    """Whether Kubernetes itself has the kind; a mistake is raised."""
    try:
        kubernetes_validate.validate(item, version, strict=True)
        return True
    except kubernetes_validate.SchemaNotFoundError:
        return False


def main():
    files = {path: load(path) for path in sys.argv[1:]}
    failed = False
    custom = []
    for version in VERSIONS:
        known = 0
        custom = []
        for path, objects in files.items():
            for item in objects:
                try:
                    if validate(item, version):
                        known += 1
                    else:
                        custom.append(item)
                except kubernetes_validate.ValidationError as error:
                    print(f"{path}: {item['kind']}/{item['metadata']['name']}, Kubernetes {version}: {error.message}")
                    failed = True
        print(f"Kubernetes {version}: {known} objects validated, {len(custom)} custom resources")
    modelled = [item for item in custom if not item["apiVersion"].startswith(WITHOUT_MODEL)]
    checked = subprocess.run(["node", Path(__file__).with_name("crd.mjs")], input=json.dumps(modelled), text=True)
    print(f"custom resources without a model: {len(custom) - len(modelled)}")
    sys.exit(failed or checked.returncode != 0)


if __name__ == "__main__":
    main()

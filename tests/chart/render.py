"""Renders the chart by the real helm, and finds things in what it renders."""
import functools
import json
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/participant-gateway"
PRESETS = CHART / "ci"
# The newest minor whose schemas the checks have.
NEWEST = "1.37.0"
NAMESPACE = "shop"


class Refused(Exception):
    """helm did not render; the message is helm's."""


def preset(name):
    return PRESETS / f"{name}-values.yaml"


def preset_names():
    return sorted(path.name.removesuffix("-values.yaml") for path in PRESETS.glob("*-values.yaml"))


@functools.cache
def helm(*arguments):
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def value_arguments(name, values):
    arguments = ["--values", str(preset(name))] if name else []
    for path, value in (values or {}).items():
        arguments += ["--set-json", f"{path}={json.dumps(value)}"]
    return arguments


def render_text(name=None, values=None, kube=NEWEST):
    """What `helm template` prints, for a preset, and values by their paths that are set beside it."""
    arguments = ["template", "rel", str(CHART), "--namespace", NAMESPACE, "--kube-version", kube]
    return helm(*arguments, *value_arguments(name, values))


def render(name=None, values=None, kube=NEWEST):
    """The objects that helm renders."""
    return [item for item in yaml.safe_load_all(render_text(name, values, kube)) if item]


def by_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def named(objects, kind, suffix=""):
    """The one object of a kind whose name is the release's, with `suffix`."""
    (one,) = [item for item in by_kind(objects, kind) if item["metadata"]["name"] == f"rel-participant-gateway{suffix}"]
    return one


def pod_of(objects):
    """Metadata and spec of the gateway's pods."""
    return named(objects, "Deployment")["spec"]["template"]


def config(objects):
    """The gateway's configuration file, read as TOML."""
    return tomllib.loads(named(objects, "ConfigMap")["data"]["config.toml"])

"""What is made from the chart: descriptions in its schema, and the table of what each preset changes.

    python3 tests/chart/generate.py            # fails where a file differs from what would be written
    python3 tests/chart/generate.py --write    # writes

Run by .ci/helm, which has the modules and helm at hand.
"""
import collections
import json
import re
import sys
from pathlib import Path

from render import CHART, ROOT, config, named, pod_of, preset_names, render

PARAM = re.compile(r"^\s*## @param (\S+)(?: \[[^\]]*\])? (.+)$")
SETTING = re.compile(r"^\| `([a-z0-9_.]+)` \| `GATEWAY_\w+` \| [^|]+ \| ([^|]+) \| (.+) \|$")
TABLE = re.compile(r"(?<=<!-- presets: begin -->\n).*(?=<!-- presets: end -->)", re.DOTALL)

EMPTY = {"kinds": collections.Counter(), "settings": set()}


def parameters():
    """The description of each value, by its path."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    return {match[1]: match[2] for match in map(PARAM.match, lines) if match}


def settings():
    """Type and description of each setting of the gateway, by its path, from the table that the gateway's source makes."""
    lines = (ROOT / "docs/configuration.md").read_text().splitlines()
    for match in filter(None, map(SETTING.match, lines)):
        key, default, description = match.groups()
        default = default.strip("` ")
        kind = "integer" if default.isdigit() else "boolean" if default in ("true", "false") else "string"
        yield key, {"description": description, "type": kind}


def describe(schema, path, described):
    """Fills the descriptions below `schema` that values.yaml has; the others stand in the schema itself."""
    for name, child in schema.get("properties", {}).items():
        where = f"{path}{name}"
        if where in described:
            # First, for whoever reads the file.
            text = described.pop(where)
            rest = {key: value for key, value in child.items() if key != "description"}
            child = schema["properties"][name] = {"description": text, **rest}
        if where != "config":
            describe(child, f"{where}.", described)


def configuration(schema):
    """The settings below `config`, but for the accounts and the policy, which the schema has by hand."""
    tables = {name: schema["properties"][name] for name in ("accounts", "default_account", "policy")}
    for key, setting in settings():
        table, _, name = key.rpartition(".")
        if table:
            empty = {"description": f"The table `{table}`", "type": "object", "additionalProperties": False}
            tables.setdefault(table, {**empty, "properties": {}})["properties"][name] = setting
        else:
            tables[name] = setting
    schema["properties"] = tables


def schema_text():
    schema = json.loads((CHART / "values.schema.json").read_text())
    described = parameters()
    describe(schema, "", described)
    if described:
        sys.exit(f"values.schema.json has no such values: {', '.join(described)}")
    configuration(schema["properties"]["config"])
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def settings_of(objects):
    """The settings in the configuration file, by their paths."""
    for table, value in config(objects).items():
        if isinstance(value, dict):
            yield from (f"`{table}.{name}`" for name in value)
        elif isinstance(value, list):
            yield from (f"`{table}[].{name}`" for item in value for name in item)
        else:
            yield f"`{table}`"


def preset(name):
    """What one preset renders, for its row."""
    objects = render(name)
    pod = pod_of(objects)
    pairs = {**pod["metadata"]["labels"], **pod["metadata"]["annotations"]}
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    return {
        "kinds": collections.Counter(item["kind"] for item in objects),
        "pods": str(named(objects, "Deployment")["spec"].get("replicas", "by load")),
        "secrets": ", ".join(f"`{mount['name']}`" for mount in mounts if mount["name"] != "config"),
        "settings": set(settings_of(objects)),
        "mesh": ", ".join(f"`{key}: {value}`" for key, value in pairs.items() if "linkerd.io/" in key or "istio.io/" in key),
    }


def difference(kinds, base):
    """Which kinds are more, or fewer, than those of `default`."""
    cells = []
    for kind in sorted({*kinds, *base}):
        more = kinds[kind] - base[kind]
        if more:
            cells.append(f"{'' if more > 0 else 'no '}{kind}" + (f" ×{abs(more)}" if abs(more) > 1 else ""))
    return ", ".join(cells)


def presets_text():
    """What each preset renders beside what `default` does."""
    rows = {name: preset(name) for name in sorted(preset_names(), key=lambda name: (name != "default", name))}
    heads = ["preset", "objects", "pods", "mounted", "objects beside", "settings beside", "labels and annotations for the mesh"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, made in rows.items():
        base = EMPTY if name == "default" else rows["default"]
        link = f"[{name}](../helm/participant-gateway/ci/{name}-values.yaml)"
        beside = [difference(made["kinds"], base["kinds"]), ", ".join(sorted(made["settings"] - base["settings"]))]
        cells = [link, str(made["kinds"].total()), made["pods"], made["secrets"], *beside, made["mesh"]]
        lines.append("| " + " | ".join(cell or "–" for cell in cells) + " |")
    page = (ROOT / "docs/helm.md").read_text()
    return TABLE.sub(lambda _: "\n".join(lines) + "\n", page)


def main():
    made = {CHART / "values.schema.json": schema_text, ROOT / "docs/helm.md": presets_text}
    stale = []
    for path, make in made.items():
        text = make()
        if path.read_text() == text:
            continue
        if "--write" in sys.argv:
            path.write_text(text)
        else:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.exit(f"not as it would be made: {', '.join(stale)}; `.ci/helm --write` writes it anew")


if __name__ == "__main__":
    main()

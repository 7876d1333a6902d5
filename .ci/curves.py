"""Draws docs/curves.svg: panels of the dashboard, out of a Prometheus that scrapes a gateway while Twilio (the sandbox) fails.

    python3 .ci/curves.py GATEWAY docs/curves.svg    # six minutes; needs prometheus on the PATH, as `.ci/metrics` gets it, and grpcio

By hand, when the dashboard has changed. Load and faults are those of LOAD and FAULTS.
"""

import html
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import grpc

DASHBOARD = "helm/participant-gateway/dashboards/participant-gateway.json"
RULES = "helm/participant-gateway/rules/participant-gateway.yaml"
PANELS = [
    "Calls by code",
    "Duration, 99th percentile",
    "Requests by version and status",
    "Duration of requests, 99th percentile",
    "Retries",
    "Lookups",
    "Budget burn, 1 hour",
    "Hit ratio",
]
SECONDS = 360
# From and to which second Twilio does what, and how that is called. What stands first strikes.
USUAL = {"latency_ms": 40}
FAULTS = [
    (90, 150, {"latency_ms": 40, "status": 503}, "503"),
    (240, 300, {"latency_ms": 1500}, "1.5 s"),
]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def field(number: int, value: bytes | str) -> bytes:
    """A field of a protobuf message, of less than 128 bytes."""
    value = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(value)]) + value


# One who is read, and one who is written. What a write has touched, the whole conversation, is not told as it was.
ALICE = field(1, field(1, "CH00000000000000000000000000000001")) + field(2, "MB00000000000000000000000000000001")
NOOR = field(1, field(1, "conv_conversation_00000000000000000000000001")) + field(2, "conv_participant_00000000000000000000000001")
# Method, message, calls a second, how many callers do that, one call at a time.
LOAD = [
    ("GetParticipant", ALICE, 50, 4),
    ("GetParticipant", ALICE + field(3, field(1, b"")), 5, 8),
    ("UpdateParticipant", NOOR + field(3, field(6, "Noor")) + field(4, field(1, "display_name")), 1, 2),
]


def get(url: str, data: dict | None = None, method: str | None = None) -> dict:
    body = None if data is None else json.dumps(data).encode()
    with OPENER.open(urllib.request.Request(url, body, method=method), timeout=10) as answer:
        return json.loads(answer.read() or b"{}")


def call(stub: grpc.UnaryUnaryMultiCallable, message: bytes, rate: int, end: float) -> None:
    """So many a second, or fewer where each takes longer."""
    while (begin := time.time()) < end:
        try:
            stub(message, timeout=5)
        except grpc.RpcError:
            pass
        time.sleep(max(0.0, begin + 1 / rate - time.time()))


def measure(gateway: str, work: Path, started: list[subprocess.Popen]) -> list[tuple[dict, list[tuple[str, list]]]]:
    def start(*command: str, log: str) -> None:
        with open(work / log, "wb") as file:
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT))

    ready = work / "ready.json"
    listen = ["--grpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    start(gateway, "serve", "--sandbox", *listen, "--ready-file", str(ready), log="gateway.log")
    while not ready.exists():
        if started[0].poll() is not None:
            sys.exit(f"the gateway ended: {(work / 'gateway.log').read_text()}")
        time.sleep(0.1)
    at = json.loads(ready.read_text())
    sandbox = f"http://{at['sandbox']}/_sandbox/faults"
    get(sandbox, USUAL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        prometheus = f"127.0.0.1:{free.getsockname()[1]}"
    scrape = {"job_name": "gateway", "static_configs": [{"targets": [at["admin"]]}]}
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": [os.path.abspath(RULES)], "scrape_configs": [scrape]}
    (work / "prometheus.json").write_text(json.dumps(config))
    paths = [f"--config.file={work}/prometheus.json", f"--storage.tsdb.path={work}/tsdb"]
    start("prometheus", *paths, f"--web.listen-address={prometheus}", log="prometheus.log")
    begin = time.time()
    with grpc.insecure_channel(at["grpc"]) as channel:
        for method, message, rate, callers in LOAD:
            stub = channel.unary_unary(f"/participant.v1.ParticipantService/{method}")
            for _ in range(callers):
                threading.Thread(target=call, args=(stub, message, rate, begin + SECONDS)).start()
        fail_and_wait(sandbox, begin)
    panels = {panel["title"]: panel for panel in json.loads(Path(DASHBOARD).read_text())["panels"]}
    return [(panels[title], curves(prometheus, panels[title], begin)) for title in PANELS]


def fail_and_wait(sandbox: str, begin: float) -> None:
    for since, until, fault, _ in FAULTS:
        for second, becomes in ((since, fault), (until, USUAL)):
            time.sleep(max(0.0, begin + second - time.time()))
            get(sandbox, method="DELETE")
            get(sandbox, becomes)
            print(f"after {second} s: {becomes}", flush=True)
    time.sleep(max(0.0, begin + SECONDS + 1 - time.time()))


def curves(prometheus: str, panel: dict, begin: float) -> list[tuple[str, list]]:
    found = []
    for target in panel["targets"]:
        query = re.sub(r"\$[a-z]+", ".*", target["expr"].replace("$__rate_interval", "10s"))
        asked = {"query": query, "start": begin, "end": begin + SECONDS, "step": 2}
        series = get(f"http://{prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}")["data"]["result"]
        for one in series:
            name = re.sub(r"\{\{(\w+)}}", lambda label: one["metric"].get(label[1], ""), target["legendFormat"])
            name = name.replace("participant.v1.ParticipantService/", "").strip()
            found.append((name, [(at - begin, float(value)) for at, value in one["values"]]))
    return found


# === The drawing: panels of 460 by 250, two beside each other

COLOURS = ["#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00"]
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H = 460, 250, 52, 28, 390, 140


def draw(panel: dict, series: list[tuple[str, list]], x0: int, y0: int) -> list[str]:
    values = [value for _, points in series for _, value in points if math.isfinite(value)]
    top = max(values, default=1.0) * 1.1 or 1.0
    x = lambda second: x0 + LEFT + second / SECONDS * PLOT_W
    y = lambda value: y0 + TOP + PLOT_H - value / top * PLOT_H
    text = lambda at_x, at_y, what, more="": f'<text x="{at_x:.0f}" y="{at_y:.0f}" {more}>{html.escape(what)}</text>'
    unit = {"reqps": "/s", "s": " s", "short": "", "percentunit": ""}[panel["fieldConfig"]["defaults"]["unit"]]
    out = [text(x0 + LEFT, y0 + 18, panel["title"], 'font-weight="bold"')]
    for since, until, _, name in FAULTS:
        out.append(f'<rect x="{x(since):.1f}" y="{y0 + TOP}" width="{x(until) - x(since):.1f}" height="{PLOT_H}" fill="#f3e3e0"/>')
        out.append(text(x(since) + 3, y0 + TOP + 12, name, 'fill="#a66"'))
    for share in (0, 0.5, 1):
        value = top / 1.1 * share
        out.append(f'<path d="M{x(0):.1f} {y(value):.1f}H{x(SECONDS):.1f}" stroke="#ddd"/>')
        out.append(text(x(0) - 5, y(value) + 4, f"{value:.3g}{unit}", 'text-anchor="end"'))
    for minute in range(SECONDS // 60 + 1):
        out.append(text(x(minute * 60), y0 + TOP + PLOT_H + 14, f"{minute}", 'text-anchor="middle"'))
    columns = 1 if any(len(name) > 34 for name, _ in series) else 2
    for index, (name, points) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        line, pen_is_up = "", True
        for second, value in points:
            if math.isfinite(value):
                line += f"{'M' if pen_is_up else 'L'}{x(second):.1f} {y(value):.1f}"
            pen_is_up = not math.isfinite(value)
        out.append(f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        column, row = index % columns, index // columns
        out.append(text(x0 + LEFT + column * 200, y0 + TOP + PLOT_H + 32 + row * 13, name, f'fill="{colour}"'))
    return out


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    gateway, to = sys.argv[1:]
    started: list[subprocess.Popen] = []
    with tempfile.TemporaryDirectory() as work:
        try:
            measured = measure(gateway, Path(work), started)
        finally:
            for process in started:
                process.kill()
                process.wait()
    width, height = 2 * WIDTH, math.ceil(len(measured) / 2) * HEIGHT
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">']
    lines.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for index, (panel, series) in enumerate(measured):
        lines += draw(panel, series, index % 2 * WIDTH, index // 2 * HEIGHT)
    Path(to).write_text("\n".join([*lines, "</svg>\n"]), encoding="utf-8")


main()

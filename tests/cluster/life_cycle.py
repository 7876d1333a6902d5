"""The chart's life cycle with the real helm, before an API server of our own whose pods are real processes of the gateway.

    python3 life_cycle.py GATEWAY CHART WORK     # within namespaces to throw away: `.ci/cluster` makes them, and finds helm

Two releases: the sandbox as the chart's own values for CI have it, and one that signs in with an existing Secret at a fake
Twilio. Drains, probes and pauses are the chart's defaults, so the times are those that an operator would see.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caller import Caller, get_participant
from cluster import IN_NAMESPACE, TWILIO, Cluster, Differs
from kubelet import Event
from store import DEPLOYMENT, Object

REPLICAS = 3
# What the sandbox knows: docs/sandbox.md.
ACCOUNT, API_KEY, API_SECRET = "AC" + "0" * 32, "SK" + "0" * 32, "sandbox"
EXISTING_SECRET = [
    "--set",
    f"twilio.accountSid={ACCOUNT},twilio.existingSecret=twilio",
    "--set",
    f"config.upstream.url={TWILIO},config.upstream.allow_insecure=true,replicaCount={REPLICAS}",
]
# The exporter's settings need the pod's own name; nothing may depend on whether spans arrive.
COLLECTOR_AWAY = ["--set", "otel.endpoint=http://collector:4317"]
HEADLESS = "gateway-participant-gateway-headless:50051"
ALICE = ("CH" + "0" * 31 + "1", "alice")
# A value that any schema of text lets pass: the gateway alone knows that a day is the most.
REFUSED_BY_THE_GATEWAY = "config.cache.ttl=25h"
# Enough for a machine that does more at the time: an upgrade takes half a minute where nothing else runs.
WAIT = ["--wait", "--timeout", "100s"]


@contextmanager
def step(title: str) -> Iterator[float]:
    begin = time.monotonic()
    print(f"--- {title}", flush=True)
    yield begin
    print(f"    {time.monotonic() - begin:.1f} s", flush=True)


def expect(what: str, is_so: bool, instead: object = "") -> None:
    if not is_so:
        raise Differs(f"it should be so, and is not: {what}. {instead}")
    print(f"    {what}", flush=True)


def serving(timeline: list[Event], since: float) -> list[int]:
    """How many pods were ready and not about to end: at that time, and after each change since."""
    pods: set[str] = set()
    counts = [0]
    for event in timeline:
        if event.what == "ready":
            pods.add(event.pod)
        elif event.what in ("not ready", "terminating"):
            pods.discard(event.pod)
        counts = [*counts, len(pods)] if event.at >= since else [len(pods)]
    return counts


def count(timeline: list[Event], what: str) -> int:
    return sum(event.what == what for event in timeline)


class LifeCycle:
    def __init__(self, cluster: Cluster):
        self._cluster = cluster

    def run(self) -> None:
        self._sandbox()
        self._cluster.start_twilio()
        self._install()
        self._dry_run()
        self._upgrade()
        self._failing_upgrade_and_rollback()
        self._uninstall("gateway", left={"Secret/twilio"})

    def _sandbox(self) -> None:
        cluster = self._cluster
        with step("install the sandbox") as begin:
            notes = cluster.release(
                "install", "demo", "--create-namespace", "-f", cluster.values_file("sandbox"), *COLLECTOR_AWAY, *WAIT
            )
            ready = next(it.at for it in cluster.timeline() if it.what == "ready")
            expect(f"its pod is ready {ready - begin:.1f} s after that began", ready > begin)
        with step("do what the notes say"):
            self._commands_of(notes)
        self._uninstall("demo", left=set())

    def _commands_of(self, notes: str) -> None:
        """All but those behind a port-forward, which this API server does not know."""
        commands = [line.strip() for line in notes.splitlines() if line.startswith(("  kubectl ", "  helm "))]
        for command in commands:
            if "port-forward" not in command:
                told = self._cluster.run(*command.split())
                expect(command, bool(told), "it prints nothing")

    def _install(self) -> None:
        cluster = self._cluster
        cluster.put_secret("twilio", {"api-key": API_KEY, "api-secret": "not the secret"})
        with step(f"install {REPLICAS} replicas with a Secret that Twilio refuses") as begin:
            cluster.release("install", "gateway", *EXISTING_SECRET, *WAIT)
            expect(
                "the pods are ready, for that does not depend on Twilio",
                serving(cluster.timeline(), begin)[-1] == REPLICAS,
            )
        with step("test it"):
            told = cluster.run("helm", "test", "gateway", "--logs", fails=True)
            expect("helm fails, and the log says why", "UPSTREAM_CREDENTIALS_REJECTED" in told, told)
        with step("test it with the Secret corrected") as begin:
            cluster.put_secret("twilio", {"api-key": API_KEY, "api-secret": API_SECRET})
            self._passing_test("gateway")
            timeline = cluster.timeline(begin)
            expect("no pod but the test's was started for that", count(timeline, "started") == 1, timeline)

    def _passing_test(self, release: str) -> None:
        told = self._cluster.run("helm", "test", release, "--logs")
        expect("the test passes", "Phase:          Succeeded" in told, told)

    def _upgrade_to(self, value: str, *options: str, fails: bool = False) -> str:
        return self._cluster.release("upgrade", "gateway", *EXISTING_SECRET, "--set", value, *options, fails=fails)

    def _dry_run(self) -> None:
        with step("upgrade --dry-run=server"):
            before = self._cluster.objects()
            told = self._upgrade_to("replicaCount=4", "--dry-run=server")
            expect("it shows what would be", "replicas: 4" in told, told)
            expect("nothing changes", self._cluster.objects() == before)

    def _template(self) -> Object:
        return self._cluster.store.get(DEPLOYMENT, IN_NAMESPACE, "gateway-participant-gateway")["spec"]["template"]

    def _upgrade(self) -> None:
        cluster = self._cluster
        before = self._template()
        with step("upgrade with another setting, while somebody calls") as begin:
            with Caller(HEADLESS, get_participant(*ALICE)) as caller:
                self._upgrade_to("config.cache.ttl=1m", *WAIT)
                cluster.until(
                    "the old pods exit with 0", lambda: count(cluster.timeline(begin), "exited with 0") == REPLICAS
                )
            checksums = [it["metadata"]["annotations"]["checksum/config"] for it in (before, self._template())]
            expect("the checksum of the configuration is another", checksums[0] != checksums[1], checksums)
            counts = serving(cluster.timeline(), begin)
            expect(
                f"never fewer than {REPLICAS} pods serve, and never more than {REPLICAS + 1}",
                set(counts) == {REPLICAS, REPLICAS + 1},
                counts,
            )
            timeline = cluster.timeline(begin)
            expect("the old pods drain and exit with 0, none is killed", not count(timeline, "SIGKILL"), timeline)
            calls = caller.outcomes
            expect(f"of {calls.total()} calls without retries none failed", set(calls) == {"OK"}, calls)
        with step("test it"):
            self._passing_test("gateway")

    def _failing_upgrade_and_rollback(self) -> None:
        before = self._template()
        with step("upgrade with a setting that the gateway refuses") as begin:
            self._upgrade_to(REFUSED_BY_THE_GATEWAY, "--wait", "--timeout", "8s", fails=True)
            timeline = self._cluster.timeline(begin)
            expect("helm fails: the new pod exits with 64", count(timeline, "exited with 64") > 0, timeline)
        with step("roll back"):
            self._cluster.run("helm", "rollback", "gateway", *WAIT)
            expect("the template is the one of before", self._template() == before)
            expect(
                "no pod of before was touched",
                set(serving(self._cluster.timeline(), begin)) == {REPLICAS},
                self._cluster.timeline(begin),
            )
        with step("test it"):
            self._passing_test("gateway")

    def _uninstall(self, release: str, left: set[str]) -> None:
        with step("uninstall") as begin:
            self._cluster.run("helm", "uninstall", release, *WAIT)
            self._cluster.until(f"nothing is left but {left}", lambda: set(self._cluster.objects()) == left)
            expect(
                "nothing of it is left, and no pod had to be killed",
                not count(self._cluster.timeline(begin), "SIGKILL"),
            )


def main() -> None:
    cluster = Cluster(*(Path(it).resolve() for it in sys.argv[1:]))
    try:
        LifeCycle(cluster).run()
    except (Differs, subprocess.TimeoutExpired) as problem:
        print(f"{cluster.logs()}\n\ncluster: FAILED: {problem}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

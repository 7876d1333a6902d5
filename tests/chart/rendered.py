"""From each preset of the chart to a running process: the gateway is started with exactly the args, the environment and the
files of the rendered Deployment, passes the probes as they are spelled there, and reads through to a Twilio.

    python3 tests/chart/rendered.py GATEWAY

Twilio is the gateway's own sandbox as a process of its own, whose URL and account are the only values that are set beside
the preset's. Every port is the chart's, so `.ci/rendered` runs this in a network of its own.
"""
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import render
from pod_process import PodProcess

# The sandbox's, by docs/sandbox.md.
ACCOUNT = "AC00000000000000000000000000000000"
CREDENTIALS = {
    "api-key": "SK00000000000000000000000000000000",
    "api-secret": "sandbox",
    "client-id": "OQ00000000000000000000000000000000",
    "client-secret": "sandbox",
    "auth-token": "sandbox",
    "secondary-auth-token": "another",
}
CONVERSATIONS = ("CH00000000000000000000000000000001", "conv_conversation_00000000000000000000000001")
# What the presets take as given: Secrets of the namespace, and a SecretProviderClass. No Redis answers there.
SECRETS = {"twilio": CREDENTIALS, "rel-second": CREDENTIALS, "redis": {"url": "redis://127.0.0.1:1"}}
PATIENCE = 60


def values_beside(preset, twilio):
    """The values that make the sandbox Twilio."""
    if preset == "sandbox":
        return {}
    values = {
        "twilio.accountSid": ACCOUNT,
        "config.upstream.url": twilio,
        "config.upstream.token_url": f"{twilio}/v2/token",
        # An account's own edge would outdo the URL.
        "twilio.edge": "",
        "twilio.region": "",
    }
    if preset == "inline":
        values |= {"twilio.inline.apiKey": CREDENTIALS["api-key"], "twilio.inline.apiSecret": CREDENTIALS["api-secret"]}
    if preset == "full":
        values["config.default_account"] = ACCOUNT
    return values


@contextmanager
def sandbox(gateway):
    """A fake Twilio: its URL."""
    with subprocess.Popen([gateway, "sandbox", "--listen=127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def passes(probe):
    """One native gRPC probe, as the kubelet asks it."""
    (kind, spelled), = [(key, value) for key, value in probe.items() if key in ("grpc", "exec", "httpGet", "tcpSocket")]
    assert kind == "grpc", f"a {kind} probe has to be learned here"
    request = json.dumps({"service": spelled["service"]})
    command = ["grpcurl", "-plaintext", "-max-time", str(probe["timeoutSeconds"]), "-d", request,
               f"127.0.0.1:{spelled['port']}", "grpc.health.v1.Health/Check"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0 and json.loads(done.stdout) == {"status": "SERVING"}


def until(condition, what, pod):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert pod.is_running(), f"the gateway ended before {what}: {pod.log.read_text()}"
        assert time.monotonic() < end, f"{what} does not come: {pod.log.read_text()}"


def read(gateway, port):
    """A read of each version through to Twilio, with the credentials that are mounted."""
    for conversation in CONVERSATIONS:
        command = [gateway, "probe", f"--address=127.0.0.1:{port}", f"--conversation={conversation}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def drain(pod):
    """SIGTERM: not ready while it lives, and gone within the grace period, of which preStop has taken its share."""
    began = time.monotonic()
    pod.process.send_signal(signal.SIGTERM)
    until(lambda: not passes(pod.container["readinessProbe"]), "the end of readiness", pod)
    assert passes(pod.container["livenessProbe"]), "a pod that drains would be restarted"
    hook = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = pod.spec["terminationGracePeriodSeconds"] - hook
    assert pod.process.wait(grace) == 0, pod.log.read_text()
    print(f"drained       exit 0, {time.monotonic() - began:.1f} s after SIGTERM, of {grace} s")


def check(preset, gateway, twilio):
    with tempfile.TemporaryDirectory() as folder:
        # Whom the pod runs as has to pass through.
        Path(folder).chmod(0o755)
        began = time.monotonic()
        objects = render.render(preset, values_beside(preset, twilio))
        rendered = time.monotonic()
        with PodProcess(render.pod_of(objects), objects, SECRETS, gateway, folder) as pod:
            until(lambda: passes(pod.container["startupProbe"]), "a passing startup probe", pod)
            until(lambda: passes(pod.container["readinessProbe"]), "a passing readiness probe", pod)
            ready = time.monotonic()
            assert passes(pod.container["livenessProbe"]), "the liveness probe fails"
            for port in pod.container["ports"]:
                socket.create_connection(("127.0.0.1", port["containerPort"])).close()
            read(gateway, pod.container["ports"][0]["containerPort"])
            print(f"{preset:<14}{ready - began:.2f} s from `helm template` to ready, of which helm took {rendered - began:.2f} s")
            if preset == "default":
                drain(pod)
            else:
                assert pod.terminate(signal.SIGINT) == 0, pod.log.read_text()


def main():
    gateway = str(Path(sys.argv[1]).resolve())
    with sandbox(gateway) as twilio:
        for preset in render.preset_names():
            check(preset, gateway, twilio)


main()

"""A container's native gRPC probes, asked as a kubelet asks them: by the pod's address, without TLS."""

import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from store import Object


class Probes:
    """Nothing but the startup probe counts until it has succeeded. A probe that is not there succeeds."""

    def __init__(self, container: Object, address: str):
        self._startup, self._liveness, self._readiness = (
            Probe(container[name], address) if name in container else None
            for name in ("startupProbe", "livenessProbe", "readinessProbe")
        )
        self._is_started = self._startup is None
        self._is_ready = False

    def is_dead(self) -> bool:
        """Whether the container has to be stopped."""
        if self._startup and not self._is_started:
            outcome = self._startup.outcome()
            self._is_started = outcome is True
            return outcome is False
        return self._liveness is not None and self._liveness.outcome() is False

    def is_ready(self) -> bool:
        if self._is_started:
            outcome = self._readiness.outcome() if self._readiness else True
            self._is_ready = self._is_ready if outcome is None else outcome
        return self._is_ready


class Probe:
    def __init__(self, spec: Object, address: str):
        self._spec = spec
        self._target = f"{address}:{spec['grpc']['port']}"
        self._request = health_pb2.HealthCheckRequest(service=spec["grpc"].get("service", ""))
        self._next_at = time.monotonic() + spec.get("initialDelaySeconds", 0)
        self._failures = 0

    def outcome(self) -> bool | None:
        """None if it is not due, or has failed less often than counts."""
        if time.monotonic() < self._next_at:
            return None
        self._next_at = time.monotonic() + self._spec.get("periodSeconds", 10)
        if self._serves():
            self._failures = 0
            return True
        self._failures += 1
        return False if self._failures >= self._spec.get("failureThreshold", 3) else None

    def _serves(self) -> bool:
        with grpc.insecure_channel(self._target) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    self._request, timeout=self._spec.get("timeoutSeconds", 1)
                )
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

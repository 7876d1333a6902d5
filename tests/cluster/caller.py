"""A caller outside a mesh as the chart's notes advise one: by the headless Service, balanced by calls. But without retries."""

import threading
from collections import Counter

import grpc

# No service config, so no call is repeated that a server may have seen. What none has seen, because it met the GOAWAY on its way,
# gRPC itself sends anew: turned off, one call of some hundred thousand is lost in the client.
METHOD = "/participant.v1.ParticipantService/GetParticipant"
THREADS = 4
OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),
    # The default of 30 s is longer than what this caller has known the Service for when it has to look again.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


def get_participant(conversation: str, participant: str) -> bytes:
    """The request's message: two fields, the first of which holds one."""
    return _text(1, _text(1, conversation.encode())) + _text(2, participant.encode())


def _text(number: int, value: bytes) -> bytes:
    # Lengths below 128 are one byte.
    return bytes([number << 3 | 2, len(value)]) + value


class Caller:
    """Reads alice until the `with` ends; then `outcomes` tells how often each status came back."""

    def __init__(self, target: str, request: bytes):
        self.outcomes: Counter[str] = Counter()
        self._request = request
        self._stop = threading.Event()
        self._channel = grpc.insecure_channel(f"dns:///{target}", OPTIONS)
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]

    def __enter__(self) -> "Caller":
        grpc.channel_ready_future(self._channel).result(timeout=10)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def _run(self) -> None:
        call = self._channel.unary_unary(METHOD)
        outcomes: Counter[str] = Counter()
        while not self._stop.is_set():
            try:
                answer = call(self._request, timeout=5)
                outcomes["OK" if b"alice" in answer else "an answer to something else"] += 1
            except grpc.RpcError as error:
                outcomes[f"{error.code().name}: {error.details()}"] += 1
        # Counters are no safe place for several threads at once.
        self.outcomes.update(outcomes)

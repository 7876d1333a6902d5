"""Reads, pages, meets a deadline and watches, through the gateway:

    python client.py 127.0.0.1:50051 CH00000000000000000000000000000001

The address may be a name that stands for several gateways: dns:///participant-gateway-headless:50051.
"""

import asyncio
import itertools
import random
import sys
import time
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from participant.v1 import participant_pb2, participant_service_pb2_grpc
from participant.v1 import participant_service_pb2 as pb

OPTIONS = [
    # A connection that has died in silence is noticed after at most 40 s, also while only a stream is open on it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Every address of the name takes its share of the calls.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
]
ATTEMPTS = 6
# Three heartbeats: a watcher that hears nothing for so long is not connected, whatever its connection says.
SILENCE_SECONDS = 45


class Failure:
    """What the gateway says about a failed call."""

    def __init__(self, error: grpc.aio.AioRpcError):
        self.code = error.code()
        self.info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        status = rpc_status.from_call(error)
        # An error of the network has no details.
        details = status.details if status else []
        self.asks_to_wait = any(detail.Unpack(retry) for detail in details)
        self.wait_seconds = retry.retry_delay.ToNanoseconds() / 1e9
        any(detail.Unpack(self.info) for detail in details)
        self.forbids_retry = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms") == "-1"

    def __str__(self) -> str:
        return self.info.reason or self.code.name

    def seconds_before(self, attempt: int) -> float | None:
        """How long to wait before the call is repeated, if it may be."""
        if self.forbids_retry:
            return None
        if self.asks_to_wait:
            # Never shorter, and a little longer by chance, so that callers who were told the same do not come back at once.
            return self.wait_seconds * (1 + random.random() / 10)
        if self.code == grpc.StatusCode.UNAVAILABLE:
            return backoff_seconds(attempt)
        return None


def backoff_seconds(attempt: int) -> float:
    return random.uniform(0.5, 1) * min(0.1 * 2**attempt, 5)


async def repeated(call, request, seconds: float):
    """The one place that repeats calls: only those that are safe to repeat go through it, and all within one deadline."""
    deadline = time.monotonic() + seconds
    for attempt in itertools.count(1):
        try:
            return await call(request, timeout=deadline - time.monotonic())
        except grpc.aio.AioRpcError as error:
            failure = Failure(error)
            wait = failure.seconds_before(attempt)
            if wait is None or attempt == ATTEMPTS or time.monotonic() + wait >= deadline:
                raise
            print(f"retry: {failure}, in {wait:.1f} s")
            await asyncio.sleep(wait)


async def page(stub, conversation) -> list[participant_pb2.Participant]:
    participants, token = [], ""
    for pages in itertools.count(1):
        request = pb.ListParticipantsRequest(conversation=conversation, page_size=2, page_token=token)
        answer = await repeated(stub.ListParticipants, request, seconds=10)
        participants += answer.participants
        token = answer.next_page_token
        if not token:
            print(f"page: {len(participants)} participants on {pages} pages")
            return participants


async def read(stub, conversation, participant_id: str) -> None:
    request = pb.GetParticipantRequest(conversation=conversation, participant_id=participant_id)
    # 0 asks Twilio; absent would be the gateway's default.
    request.read_options.max_age.SetInParent()
    answer = await repeated(stub.GetParticipant, request, seconds=10)
    print(f"read: {answer.participant.id} {pb.CacheStatus.Name(answer.read_info.cache_status)}")


async def meet_deadline(stub, conversation, participant_id: str) -> None:
    """Not repeated: who has no more time has none for another attempt."""
    request = pb.GetParticipantRequest(conversation=conversation, participant_id=participant_id)
    request.read_options.max_age.SetInParent()
    try:
        await stub.GetParticipant(request, timeout=0.3)
        print("deadline: OK")
    except grpc.aio.AioRpcError as error:
        print(f"deadline: {error.code().name}")


async def create(stub, conversation) -> str:
    address = participant_pb2.Address(channel=participant_pb2.CHANNEL_CHAT, address=f"client-{uuid.uuid4()}")
    participant = participant_pb2.Participant(addresses=[address])
    # The same id at every attempt makes this create safe to repeat.
    request = pb.CreateParticipantRequest(
        conversation=conversation, participant=participant, request_id=str(uuid.uuid4())
    )
    answer = await repeated(stub.CreateParticipant, request, seconds=20)
    print(f"create: {answer.participant.id}")
    return answer.participant.id


async def watch(stub, conversation, handle, begin) -> None:
    """Hands every change to `handle` once, whatever becomes of the connection."""
    token, failures = "", 0
    while True:
        request = pb.WatchParticipantsRequest(conversations=[conversation], resume_token=token)
        stream = stub.WatchParticipants(request, wait_for_ready=True)
        try:
            while True:
                message = await asyncio.wait_for(stream.read(), SILENCE_SECONDS)
                if message is grpc.aio.EOF:
                    break
                if not token:
                    # Only now what is read is whole: a change from here on is told, and the read sees those before.
                    await begin()
                if message.HasField("event"):
                    await handle(message.event)
                # Not before it is dealt with. Who keeps it on disk goes on from here after a restart.
                token, failures = message.resume_token, 0
        except TimeoutError:
            stream.cancel()
            print("watch: resumes after silence")
        except grpc.aio.AioRpcError as error:
            failure = Failure(error)
            if failure.info.reason == "WATCH_LAGGED":
                token = failure.info.metadata["resume_token"]
            elif failure.info.reason == "RESUME_TOKEN_EXPIRED":
                token = ""
            elif failure.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            print(f"watch: resumes after {failure}")
        failures += 1
        await asyncio.sleep(backoff_seconds(failures))


async def main(address: str, conversation_id: str) -> None:
    conversation = pb.ConversationRef(conversation_id=conversation_id)
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub = participant_service_pb2_grpc.ParticipantServiceStub(channel)
        participants = await page(stub, conversation)
        await read(stub, conversation, participants[0].id)
        await meet_deadline(stub, conversation, participants[-1].id)

        has_begun, told = asyncio.Event(), asyncio.Queue()

        async def begin() -> None:
            await page(stub, conversation)
            has_begun.set()

        async def handle(event: pb.ParticipantEvent) -> None:
            print(f"watch: {event.participant.id} {pb.ParticipantEventType.Name(event.type)}")
            await told.put(event.participant.id)

        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(watch(stub, conversation, handle, begin))
            await has_begun.wait()
            for _ in range(2):
                created = await create(stub, conversation)
                while await told.get() != created:
                    pass
            watcher.cancel()
    print("done")


if __name__ == "__main__":
    # Each line is for who reads along.
    sys.stdout.reconfigure(line_buffering=True)
    asyncio.run(main(*sys.argv[1:]))

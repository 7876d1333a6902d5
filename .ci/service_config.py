"""Makes a channel with the service config that a Markdown file shows, and looks at what it repeats.

    python3 service_config.py GATEWAY docs/clients/README.md
"""

import asyncio
import json
import re
import sys
import tempfile

import grpc
from participant.v1 import participant_pb2, participant_service_pb2_grpc
from participant.v1 import participant_service_pb2 as pb
from scenario import VERSIONS, Proxy, Sandbox, Version, started


async def asked(sandbox: Sandbox, method: str) -> int:
    requests = json.loads(await sandbox.ask("/_sandbox/requests", None, method="GET"))
    return sum(entry["count"] for entry in requests["by"] if entry["method"] == method)


async def check(stub, proxy: Proxy, sandbox: Sandbox, version: Version) -> None:
    conversation = pb.ConversationRef(conversation_id=version.conversation)

    await sandbox.ask("/_sandbox/faults", '{"times":2,"status":503}')
    await stub.GetParticipant(pb.GetParticipantRequest(conversation=conversation, participant_id=version.first))
    assert (times := await asked(sandbox, "GET")) == 3, f"a read that fails twice is made {times} times, not 3"

    # Once at Twilio, the create's connection breaks: nobody knows if it takes effect.
    await sandbox.ask("/_sandbox/faults", '{"match":{"method":"POST"},"times":1,"hold":true}')
    address = participant_pb2.Address(channel=participant_pb2.CHANNEL_CHAT, address="somebody")
    participant = participant_pb2.Participant(addresses=[address])
    create = stub.CreateParticipant(pb.CreateParticipantRequest(conversation=conversation, participant=participant))
    await sandbox.ask("/_sandbox/held?at_least=1", None, method="GET")
    with proxy.cut_off():
        pass
    assert await create.code() == grpc.StatusCode.UNAVAILABLE, f"a create whose connection broke is {create}"
    assert (times := await asked(sandbox, "POST")) == 1, f"a create whose connection broke is made {times} times, not once"


async def main(gateway: str, path: str) -> None:
    with open(path, encoding="utf-8") as file:
        (config,) = re.findall(r"^```json\n(.*?)^```", file.read(), re.DOTALL | re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        async with started(gateway, f"{folder}/gateway") as (address, sandbox):
            proxy = Proxy(address)
            options = [("grpc.service_config", json.dumps(json.loads(config)))]
            async with grpc.aio.insecure_channel(await proxy.listen(), options=options) as channel:
                stub = participant_service_pb2_grpc.ParticipantServiceStub(channel)
                await check(stub, proxy, sandbox, VERSIONS[0])
    print("  ok  the service config")


asyncio.run(main(*sys.argv[1:]))

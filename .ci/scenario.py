"""Runs a program of docs/clients before a gateway on a sandbox that throttles, is slow, and is cut off from the program.

    python3 scenario.py GATEWAY COMMAND...

COMMAND is run with the address and a conversation: once with v1's and once with v2's, at the same time, each with a gateway
of its own. Between the first and the last change that it is told of, it is cut off, and somebody else makes another.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import sys
import tempfile
import urllib.request
from dataclasses import dataclass

LIMIT_SECONDS = 30


@dataclass(frozen=True)
class Version:
    name: str
    conversation: str
    first: str
    last: str
    # How somebody else adds a participant.
    path: str
    content_type: str
    body: str


VERSIONS = [
    Version(
        "v1",
        "CH00000000000000000000000000000001",
        "MB00000000000000000000000000000001",
        "MB00000000000000000000000000000003",
        "/v1/Conversations/CH00000000000000000000000000000001/Participants",
        "application/x-www-form-urlencoded",
        "Identity=somebody",
    ),
    Version(
        "v2",
        "conv_conversation_00000000000000000000000001",
        "conv_participant_00000000000000000000000001",
        "conv_participant_00000000000000000000000003",
        "/v2/Conversations/conv_conversation_00000000000000000000000001/Participants",
        "application/json",
        '{"name":"Somebody","addresses":[{"channel":"CHAT","address":"somebody"}]}',
    ),
]

BEGIN = r"""page: 3 participants on 2 pages
retry: UPSTREAM_THROTTLED, in 1\.\d s
read: {first} CACHE_STATUS_BYPASS
deadline: (DEADLINE_EXCEEDED|DeadlineExceeded|Cancelled)
page: 3 participants on 2 pages
create: .*
"""
# What the network does to the program comes when it comes. To tonic, a connection that broke is UNKNOWN, and a deadline that
# passed by its own clock CANCELLED.
RETRY = re.compile(r"retry: (UNAVAILABLE|Unavailable|Unknown), in \d\.\d s\n")
RESUMES = re.compile(r"watch: resumes after (UNAVAILABLE|Unavailable|Unknown)\n")


class Proxy:
    """Stands between the program and the gateway, and can hold back what the program sends, or cut it off."""

    def __init__(self, gateway: str):
        self.host, port = gateway.rsplit(":", 1)
        self.port = int(port)
        self.writers: set[asyncio.StreamWriter] = set()
        self.sends, self.is_up = asyncio.Event(), True
        self.sends.set()

    async def listen(self) -> str:
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        return "127.0.0.1:%d" % server.sockets[0].getsockname()[1]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_up:
            writer.transport.abort()
            return
        gateway_reader, gateway_writer = await asyncio.open_connection(self.host, self.port)
        self.writers |= {writer, gateway_writer}
        await asyncio.gather(
            self.forward(reader, gateway_writer, self.sends), self.forward(gateway_reader, writer, None)
        )

    async def forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_send: asyncio.Event | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if may_send:
                    await may_send.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
        self.writers.discard(writer)

    def hold_back(self) -> None:
        self.sends.clear()

    @contextlib.contextmanager
    def cut_off(self):
        """Ends every connection, without what was held back, and takes no other until it is left."""
        self.is_up = False
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        self.sends.set()
        yield
        self.is_up = True


class Sandbox:
    def __init__(self, address: str):
        self.url = f"http://{address}"

    async def ask(self, path: str, body: str | None = None, method: str = "POST", **headers: str) -> bytes:
        headers["Authorization"] = "Basic " + base64.b64encode(b"AC" + b"0" * 32 + b":sandbox").decode()
        data = None if body is None else body.encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)

        def answer() -> bytes:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.read()

        return await asyncio.to_thread(answer)


async def run(gateway: str, command: list[str], version: Version, folder: str) -> str | None:
    """What is wrong, if anything is."""
    async with started(gateway, os.path.join(folder, version.name)) as (grpc, sandbox):
        # The program's first read is throttled, and its last is slower than its deadline.
        faults = [
            {"match": {"path_contains": version.first}, "times": 1, "status": 429, "code": 20429, "retry_after": "1"},
            {"match": {"path_contains": version.last}, "latency_ms": 5000},
        ]
        for fault in faults:
            await sandbox.ask("/_sandbox/faults", json.dumps(fault))
        # Long enough to hold the program back before it is told of what it has made.
        await sandbox.ask("/_sandbox/events", '{"delay_ms":500}', method="PUT")

        proxy, printed = Proxy(grpc), []
        program = await asyncio.create_subprocess_exec(
            *command, await proxy.listen(), version.conversation, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                await follow(program, proxy, sandbox, version, printed)
                await program.wait()
        except TimeoutError:
            printed.append(f"(nothing more within {LIMIT_SECONDS} s)\n")
        finally:
            await end(program)
        code, text = program.returncode, "".join(printed)
    problem = f"it ended with {code}" if code else what_is_wrong(text, version)
    return problem and f"{version.name}: {problem}; it printed:\n{text}"


def what_is_wrong(text: str, version: Version) -> str | None:
    if not re.match(BEGIN.format(first=version.first), text):
        return "it does not begin with the pages, the retry, the read and the deadline"
    created = re.findall(r"^create: (\S+)$", text, re.MULTILINE)
    told = re.findall(r"^watch: (\S+) PARTICIPANT_EVENT_TYPE_ADDED$", text, re.MULTILINE)
    if not (len(told) == 3 and [told[0], told[2]] == created and told[1] not in created):
        return "it was not told of its two changes and of the other between them, each once"
    if not RESUMES.search(text):
        return "it did not resume"
    # The answer to a create and its event are on two streams, so that either may come first.
    rest = RESUMES.sub("", RETRY.sub("", text)).splitlines()
    if len(rest) != 11 or rest[-1] != "done":
        return "there are lines too many, or it does not end with `done`"
    return None


async def follow(program, proxy: Proxy, sandbox: Sandbox, version: Version, printed: list[str]) -> None:
    was_cut = False
    async for line in program.stdout:
        printed.append(line.decode())
        if line.startswith(b"create: ") and not was_cut:
            proxy.hold_back()
        elif line.startswith(b"watch: ") and not was_cut:
            was_cut = True
            with proxy.cut_off():
                await sandbox.ask(version.path, version.body, **{"Content-Type": version.content_type})
                # All is told before the program is back.
                await sandbox.ask("/_sandbox/events/flush", "")


async def end(process: asyncio.subprocess.Process) -> None:
    # asyncio has no signal for one that has ended.
    if process.returncode is None:
        process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def started(gateway: str, path: str):
    # Without retries of its own, so that one fault is one failed call.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "TWILIO_"))}
    environment["GATEWAY_UPSTREAM_MAX_RETRIES"] = "0"
    ready = path + ".ready"
    with open(path + ".log", "wb") as log:
        process = await asyncio.create_subprocess_exec(
            gateway, "serve", "--sandbox", "--grpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
            "--drain-delay", "0s", "--ready-file", ready, env=environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=log,
        )
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not os.path.exists(ready):
                if process.returncode is not None:
                    with open(path + ".log", encoding="utf-8") as log:
                        sys.exit(f"the gateway ended with {process.returncode}: {log.read()}")
                await asyncio.sleep(0.05)
        with open(ready, encoding="utf-8") as file:
            addresses = json.load(file)
        yield addresses["grpc"], Sandbox(addresses["sandbox"])
    finally:
        await end(process)


async def main(gateway: str, *command: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = (run(gateway, list(command), version, folder) for version in VERSIONS)
        problems = [problem for problem in await asyncio.gather(*runs) if problem]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

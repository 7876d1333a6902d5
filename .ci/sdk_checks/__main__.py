"""Drives the sandbox with Twilio's own Python SDK, and compares what the SDK makes of its answers with what it should.

    python3 .ci/sdk_checks http://127.0.0.1:PORT

Each check begins with a reset of the sandbox. All that is not the SDK's is where its requests go. Operations of v1 are
checked on both paths, with and without a service.
"""

import logging
import sys
from typing import Any

import login
import v1
import v2
from harness import SERVICE, Sandbox


def title(check: Any) -> str:
    name = check.__name__ if hasattr(check, "__name__") else f"{check.func.__name__} {check.args}"
    return name[:150]


def main() -> None:
    # Its handling of access tokens logs every request.
    logging.getLogger("twilio").setLevel(logging.WARNING)
    sandbox = Sandbox(sys.argv[1])
    faces = [
        (v1.V1(sandbox, "v1", ""), v1.CHECKS + login.CHECKS),
        (v1.V1(sandbox, "v1 Services", f"/Services/{SERVICE}"), v1.CHECKS + login.CHECKS),
        (v2.V2(sandbox), v2.CHECKS + login.CHECKS),
    ]
    passed, failed = {face.name: 0 for face, _ in faces}, 0
    for face, checks in faces:
        for check in checks:
            sandbox.control("POST", "reset")
            try:
                check(face)
                passed[face.name] += 1
            # Whatever it is: the SDK itself may stumble over an answer.
            except Exception as error:
                failed += 1
                print(f"{face.name}: {title(check)}: {type(error).__name__}: {error}"[:1000], file=sys.stderr)
    print("sdk: " + ", ".join(f"{name} {count} passed" for name, count in passed.items()))
    if failed:
        sys.exit(f"sdk: {failed} FAILED, see above")


main()

"""What is checked of both versions: who may log in."""

from functools import partial
from typing import Any, Callable

from harness import ACCOUNT, API_KEY, OAUTH_CLIENT, SECRET, Sandbox, refused, same
from twilio.base.exceptions import TwilioRestException, TwilioServiceException
from twilio.rest import Client
from v2 import V2

CHECKS: list[Callable[[Any], None]] = []


def both(check: Callable[[Any], None]) -> None:
    CHECKS.append(check)


def unauthorized(face: Any, client: Client) -> None:
    kind = TwilioServiceException if isinstance(face, V2) else TwilioRestException
    refused(lambda: face.fetch(client), kind, status=401, code=20003)


@both
def a_wrong_password(face: Any) -> None:
    for user, password in ((ACCOUNT, "wrong"), ("AC000000000000000000000000000000ff", SECRET), (API_KEY, "wrong")):
        unauthorized(face, face.sandbox.client(user, password))


@both
def an_api_key(face: Any) -> None:
    face.fetch(face.sandbox.client(API_KEY))


@both
def a_primary_and_a_secondary_token(face: Any) -> None:
    face.sandbox.control("PUT", "credentials", {"auth_tokens": [SECRET, "secondary"]})
    face.fetch(face.sandbox.client())
    face.fetch(face.sandbox.client(password="secondary"))
    face.sandbox.control("PUT", "credentials", {"auth_tokens": ["secondary"]})
    unauthorized(face, face.sandbox.client())


def token_requests(sandbox: Sandbox) -> int:
    counts = sandbox.control("GET", "requests")["by"]
    return sum(one["count"] for one in counts if one["path_template"] == "/v2/token")


@both
def an_access_token(face: Any) -> None:
    client = face.sandbox.with_oauth()
    face.fetch(client)
    face.fetch(client)
    # The SDK reads the token's lifetime from its claims, and asks again when it is over.
    same("how many tokens it asked for", token_requests(face.sandbox), 1)
    logged = face.sandbox.control("GET", "requests")["last"][0]["body"]
    same("the log", logged, f"grant_type=client_credentials&client_id={OAUTH_CLIENT}&client_secret=***")
    face.sandbox.control("PUT", "credentials", {"revoke_tokens": True})
    unauthorized(face, client)


@both
def an_access_token_that_is_too_old(face: Any) -> None:
    face.sandbox.control("PUT", "credentials", {"token_ttl_s": 0})
    unauthorized(face, face.sandbox.with_oauth())


@both
def a_wrong_client_secret(face: Any) -> None:
    call = partial(face.fetch, face.sandbox.with_oauth("wrong"))
    words = "Unable to create record: Authenticate"
    refused(call, TwilioRestException, status=401, code=20003, uri="/token", msg=words)

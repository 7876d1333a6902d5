"""The SDK, told to ask the sandbox, and ways to say what should come of it."""

from datetime import datetime
from typing import Any, Callable
from urllib.parse import urlsplit

import requests
from twilio.base.exceptions import TwilioException
from twilio.base.version import Version
from twilio.credential.client_credential_provider import ClientCredentialProvider
from twilio.http.client_token_manager import ClientTokenManager
from twilio.http.http_client import TwilioHttpClient
from twilio.http.response import Response
from twilio.rest import Client

ACCOUNT = "AC00000000000000000000000000000000"
API_KEY = "SK00000000000000000000000000000000"
OAUTH_CLIENT = "OQ00000000000000000000000000000000"
SECRET = "sandbox"
SERVICE = "IS00000000000000000000000000000001"


class Differs(Exception):
    """The SDK made something else of an answer than it should."""


def same(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise Differs(f"{what} is {got!r}, and should be {wanted!r}")


def holds(instance: Any, /, **wanted: Any) -> None:
    """The attributes of one of the SDK's instances, all differences at once."""
    got = {name: getattr(instance, name) for name in wanted}
    wrong = [f"{name} is {got[name]!r}, and should be {wanted[name]!r}" for name in wanted if got[name] != wanted[name]]
    if wrong:
        raise Differs(f"of {instance!r}: " + "; ".join(wrong))


def is_date(what: str, value: Any) -> None:
    # The SDK leaves a date as text if it cannot read it.
    if not isinstance(value, datetime):
        raise Differs(f"{what} is {value!r}, which the SDK did not read as a date")


def refused(call: Callable[[], Any], kind: type, /, **wanted: Any) -> Any:
    try:
        done = call()
    except TwilioException as error:
        read = error
        # Where a page is asked for, the SDK raises the response and leaves it unread.
        if error.args and isinstance(error.args[-1], Response):
            read = Version.exception("GET", "", error.args[-1], "Unable to fetch page")
        if not isinstance(read, kind):
            raise Differs(f"it raises {read!r} and not a {kind.__name__}") from error
        holds(read, **wanted)
        return read
    raise Differs(f"it answers {done!r}, and should be refused: {wanted}")


def state(instance: Any) -> dict[str, Any]:
    """All that the SDK read into an instance."""
    return {name: value for name, value in vars(instance).items() if not name.startswith("_")}


class ToSandbox(TwilioHttpClient):
    """The SDK's HTTP client, which sends to the sandbox what is meant for Twilio."""

    def __init__(self, base: str):
        super().__init__(timeout=30)
        # No proxy and no netrc of whoever runs this.
        self.session.trust_env = False
        self.base = urlsplit(base)
        self.last: Any = None

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        asked = urlsplit(url)
        if asked.netloc not in ("conversations.twilio.com", "oauth.twilio.com", self.base.netloc):
            raise Differs(f"the SDK was told to ask {url}")
        here = asked._replace(scheme=self.base.scheme, netloc=self.base.netloc)
        self.last = super().request(method, here.geturl(), *args, **kwargs)
        return self.last


class Sandbox:
    def __init__(self, base: str):
        self.base = base
        self.session = requests.Session()
        self.session.trust_env = False
        self.http = ToSandbox(base)

    def client(self, user: str | None = ACCOUNT, password: str | None = SECRET, **kwargs: Any) -> Client:
        # An empty environment would be none given, and the process's taken.
        return Client(user, password, ACCOUNT, http_client=self.http, environment={"": ""}, **kwargs)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        done = self.session.request(method, f"{self.base}/_sandbox/{path}", json=body, timeout=30)
        if not done.ok:
            raise Differs(f"the control route {path} answers {done.status_code}: {done.text}")
        return done.json() if done.text else None

    def fault(self, **fault: Any) -> None:
        self.control("POST", "faults", {"times": 1, **fault})

    def last_request(self) -> Any:
        return self.control("GET", "requests")["last"][-1]

    def with_oauth(self, secret: str = SECRET) -> Client:
        """By the SDK's own handling of access tokens, which would ask for them by a client of the environment."""
        manager = ClientTokenManager("client_credentials", OAUTH_CLIENT, secret)
        manager.client = self.client(None, None)
        return self.client(credential_provider=ClientCredentialProvider(OAUTH_CLIENT, secret, manager))

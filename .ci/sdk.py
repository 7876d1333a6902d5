"""Drives the sandbox with Twilio's own Python SDK, and compares what the SDK makes of its answers with what it should.

    python3 sdk.py http://127.0.0.1:PORT

Each check begins with a reset of the sandbox. All that is not the SDK's is where its requests go. Operations of v1 are
checked on both paths, with and without a service.
"""

import logging
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable
from urllib.parse import urlsplit

import requests
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.base.version import Version
from twilio.credential.client_credential_provider import ClientCredentialProvider
from twilio.http.client_token_manager import ClientTokenManager
from twilio.http.http_client import TwilioHttpClient
from twilio.http.response import Response
from twilio.rest import Client
from twilio.rest.conversations.v2.participant import ParticipantList as V2ParticipantList

ACCOUNT = "AC00000000000000000000000000000000"
API_KEY = "SK00000000000000000000000000000000"
OAUTH_CLIENT = "OQ00000000000000000000000000000000"
SECRET = "sandbox"
SERVICE = "IS00000000000000000000000000000001"
V1_CONVERSATION = "CH00000000000000000000000000000001"
V2_CONVERSATION = "conv_conversation_00000000000000000000000001"
ALICE = "MB00000000000000000000000000000001"
SMS = "MB00000000000000000000000000000003"
NOBODY = "MB00000000000000000000000000000099"
NOOR = "conv_participant_00000000000000000000000001"
ROBIN = "conv_participant_00000000000000000000000002"
WHEN = datetime(2019, 5, 15, 13, 37, 35, tzinfo=timezone.utc)
OTHER_ROLE = "RL000000000000000000000000000000aa"


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


@dataclass
class V1:
    """v1 by one of its two paths."""

    sandbox: Sandbox
    name: str
    prefix: str

    def root(self, client: Client | None = None) -> Any:
        v1 = (client or self.sandbox.client()).conversations.v1
        return v1.services(SERVICE) if self.prefix else v1

    def participants(self, conversation: str = V1_CONVERSATION, client: Client | None = None) -> Any:
        return self.root(client).conversations(conversation).participants

    def one(self, sid: str, client: Client | None = None) -> Any:
        return self.root(client).conversations(V1_CONVERSATION).participants(sid)

    def fetch(self, client: Client) -> Any:
        return self.one(ALICE, client).fetch()

    def uri(self, sid: str = "", conversation: str = V1_CONVERSATION) -> str:
        return f"{self.prefix}/Conversations/{conversation}/Participants" + (f"/{sid}" if sid else "")

    def url(self, sid: str) -> str:
        return f"{self.sandbox.base}/v1{self.uri(sid)}"

    def shows(self, one: Any, **wanted: Any) -> None:
        """The whole of a participant; what is not named has the value that it begins with."""
        begins = {
            "account_sid": ACCOUNT, "conversation_sid": V1_CONVERSATION, "identity": None, "attributes": "{}",
            "messaging_binding": None, "role_sid": "RL00000000000000000000000000000001", "url": self.url(one.sid),
            "last_read_message_index": None, "last_read_timestamp": None,
        }
        if self.prefix:
            begins["chat_service_sid"] = SERVICE
        holds(one, **{**begins, **wanted})
        is_date("date_created", one.date_created)
        is_date("date_updated", one.date_updated)

    def creates(self, given: dict[str, Any], **wanted: Any) -> None:
        created = self.participants().create(**given)
        self.shows(created, **wanted)
        same("the one that is fetched", state(self.one(created.sid).fetch()), state(created))

    def updates(self, sid: str, given: dict[str, Any], **wanted: Any) -> None:
        before = state(self.one(sid).fetch())
        updated = self.one(sid).update(**given)
        changed = {**before, "date_updated": updated.date_updated, **wanted}
        same("the updated one", state(updated), changed)
        same("the one that is fetched", state(self.one(sid).fetch()), changed)


@dataclass
class V2:
    sandbox: Sandbox
    name: str = "v2"

    def participants(self, conversation: str = V2_CONVERSATION, client: Client | None = None) -> Any:
        return (client or self.sandbox.client()).conversations.v2.participants(conversation)

    def fetch(self, client: Client) -> Any:
        return self.participants(client=client)(NOOR).fetch()

    def create(self, **payload: Any) -> Any:
        return self.participants().create(V2ParticipantList.CreateParticipantInConversationRequest(payload))

    def update(self, id: str, **payload: Any) -> Any:
        return self.participants()(id).update(V2ParticipantList.UpdateParticipantInConversationRequest(payload))

    def uri(self, id: str = "", conversation: str = V2_CONVERSATION) -> str:
        return f"/Conversations/{conversation}/Participants" + (f"/{id}" if id else "")


def state(instance: Any) -> dict[str, Any]:
    """All that the SDK read into an instance."""
    return {name: value for name, value in vars(instance).items() if not name.startswith("_")}


V1_CHECKS: list[Callable[[V1], None]] = []
V2_CHECKS: list[Callable[[V2], None]] = []
BOTH: list[Callable[[Any], None]] = []


def v1(check: Callable[[V1], None]) -> None:
    V1_CHECKS.append(check)


def v2(check: Callable[[V2], None]) -> None:
    V2_CHECKS.append(check)


def both(check: Callable[[Any], None]) -> None:
    BOTH.append(check)


def title(check: Any) -> str:
    name = check.__name__ if hasattr(check, "__name__") else f"{check.func.__name__} {check.args}"
    return name[:150]


# v1: creates

ADDRESS, PROXY = "+15550100050", "+15550109050"


def creates(given: dict[str, Any], wanted: dict[str, Any], face: V1) -> None:
    face.creates(given, **wanted)


for address, proxy, channel in [
    (ADDRESS, PROXY, "sms"),
    (f"whatsapp:{ADDRESS}", f"whatsapp:{PROXY}", "whatsapp"),
    (f"messenger:{ADDRESS}", "messenger:page", "messenger"),
    (f"rcs:{ADDRESS}", "rcs:sender", "rcs"),
]:
    given = {"messaging_binding_address": address, "messaging_binding_proxy_address": proxy}
    binding = {"type": channel, "address": address, "proxy_address": proxy}
    v1(partial(creates, given, {"messaging_binding": binding}))

for given, wanted in [
    ({"identity": "carol"}, {"identity": "carol"}),
    ({"messaging_binding_address": ADDRESS}, {"messaging_binding": {"type": "sms", "address": ADDRESS}}),
    (
        {"identity": "dave", "messaging_binding_projected_address": PROXY},
        {"identity": "dave", "messaging_binding": {"type": "sms", "projected_address": PROXY}},
    ),
    (
        {"identity": "eve", "attributes": '{"a": [1, "é"]}', "role_sid": OTHER_ROLE, "date_created": WHEN,
         "date_updated": WHEN},
        {"identity": "eve", "attributes": '{"a": [1, "é"]}', "role_sid": OTHER_ROLE, "date_created": WHEN,
         "date_updated": WHEN},
    ),
    ({"identity": "i" * 256}, {"identity": "i" * 256}),
    ({"identity": "erin", "attributes": f'"{"x" * 4094}"'}, {"identity": "erin", "attributes": f'"{"x" * 4094}"'}),
    (
        {"messaging_binding_address": "a" * 256, "messaging_binding_proxy_address": "b" * 256},
        {"messaging_binding": {"type": "sms", "address": "a" * 256, "proxy_address": "b" * 256}},
    ),
]:
    v1(partial(creates, given, wanted))


# v1: fetches, updates, removals


@v1
def fetches_by_sid(face: V1) -> None:
    face.shows(face.one(ALICE).fetch(), sid=ALICE, identity="alice")


@v1
def fetches_by_identity(face: V1) -> None:
    face.shows(face.one("alice").fetch(), sid=ALICE, identity="alice")
    face.participants().create(identity="a+b ü@c")
    face.shows(face.one("a+b ü@c").fetch(), identity="a+b ü@c")


@v1
def fetches_by_the_conversations_unique_name(face: V1) -> None:
    face.shows(face.participants("sandbox").get(ALICE).fetch(), sid=ALICE, identity="alice")


def updates(sid: str, given: dict[str, Any], wanted: dict[str, Any], face: V1) -> None:
    face.updates(sid, given, **wanted)


PAIR = {"type": "sms", "address": "+15550100001"}

for sid, given, wanted in [
    (ALICE, {"date_created": WHEN}, {"date_created": WHEN}),
    (ALICE, {"date_updated": WHEN}, {"date_updated": WHEN}),
    (ALICE, {"attributes": '{"role":"driver"}'}, {"attributes": '{"role":"driver"}'}),
    (ALICE, {"role_sid": OTHER_ROLE}, {"role_sid": OTHER_ROLE}),
    (ALICE, {"identity": "alicia"}, {"identity": "alicia"}),
    (ALICE, {"last_read_message_index": 0}, {"last_read_message_index": 0}),
    (ALICE, {"last_read_timestamp": "2019-05-15T13:37:35Z"}, {"last_read_timestamp": "2019-05-15T13:37:35Z"}),
    (
        ALICE,
        {"messaging_binding_projected_address": PROXY},
        {"messaging_binding": {"type": "sms", "projected_address": PROXY}},
    ),
    (SMS, {"messaging_binding_proxy_address": PROXY}, {"messaging_binding": {**PAIR, "proxy_address": PROXY}}),
    (SMS, {"messaging_binding_proxy_address": "null"}, {"messaging_binding": PAIR}),
]:
    v1(partial(updates, sid, given, wanted))


@v1
def clears_a_projected_address(face: V1) -> None:
    face.one(ALICE).update(messaging_binding_projected_address=PROXY)
    face.updates(ALICE, {"messaging_binding_projected_address": "null"}, messaging_binding=None)


@v1
def clears_the_last_read_index(face: V1) -> None:
    face.one(ALICE).update(last_read_message_index=7)
    face.updates(ALICE, {"last_read_message_index": "null"}, last_read_message_index=None)


@v1
def updates_what_an_instance_stands_for(face: V1) -> None:
    alice = face.one(ALICE).fetch()
    same("attributes", alice.update(attributes='{"b":1}').attributes, '{"b":1}')


@v1
def removes(face: V1) -> None:
    same("the answer", face.one(ALICE).delete(), True)
    refused(face.one(ALICE).fetch, TwilioRestException, status=404, code=50432)


@v1
def the_webhook_header_arrives(face: V1) -> None:
    # Not with a delete: there this SDK takes the parameter, and drops it.
    creating = partial(face.participants().create, identity="carol", x_twilio_webhook_enabled="true")
    updating = partial(face.one(ALICE).update, attributes="{}", x_twilio_webhook_enabled="false")
    for call, value in ((creating, "true"), (updating, "false")):
        call()
        same("the header", face.sandbox.last_request()["headers"].get("x-twilio-webhook-enabled"), value)


@v1
def answers_carry_twilios_headers(face: V1) -> None:
    headers = face.one(ALICE).fetch_with_http_info().headers
    same("a request's id", len(headers["twilio-request-id"]), 34)
    same("requests at once", int(headers["twilio-concurrent-requests"]), 1)
    float(headers["twilio-request-duration"])


# v1: lists


def identities(page: Any) -> list[Any]:
    return [one.identity for one in page]


@v1
def pages_both_ways(face: V1) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V1_CONVERSATION, "count": 4})
    first = face.participants().page(page_size=3)
    same("what comes before the first page", first.previous_page(), None)
    same("the first page", identities(first), ["alice", "bob", None])
    second = first.next_page()
    same("the second page", identities(second), ["member-4", "member-5", "member-6"])
    third = second.next_page()
    same("the third page", identities(third), ["member-7"])
    same("what follows the last page", third.next_page(), None)
    back = third.previous_page()
    same("back to the second page", identities(back), ["member-4", "member-5", "member-6"])
    same("back to the first page", identities(back.previous_page()), ["alice", "bob", None])
    same("a page by its URL", identities(face.participants().get_page(second.next_page_url)), ["member-7"])


@v1
def lists_and_streams(face: V1) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V1_CONVERSATION, "count": 117})
    same("all", len(face.participants().list()), 120)
    same("all, by pages of 7", len({one.sid for one in face.participants().list(page_size=7)}), 120)
    same("up to a limit", len(face.participants().list(limit=110)), 110)
    same("streamed", len(list(face.participants().stream(limit=9, page_size=2))), 9)
    same("with headers", len(face.participants().list_with_http_info(limit=55).data), 55)


@v1
def page_sizes(face: V1) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V1_CONVERSATION, "count": 117})
    for asked, got in [(None, 50), (1, 1), (100, 100), (1000, 100)]:
        page = face.participants().page(**({"page_size": asked} if asked else {}))
        same(f"a page of {asked}", len(list(page)), got)
        same("meta.page_size", page._payload["meta"]["page_size"], got)
    refused(lambda: face.participants().page(page_size=0), TwilioRestException, status=400, code=20001)


# v1: refusals


def refuses_create(code: int, status: int, given: dict[str, Any], face: V1) -> None:
    error = refused(
        lambda: face.participants().create(**given),
        TwilioRestException,
        status=status, code=code, uri=face.uri(), method="POST", details=None,
    )
    same("the SDK's words", error.msg.startswith("Unable to create record: ") and len(error.msg) > 30, True)
    same("how many there are", len(face.participants().list()), 3)


def refuses_update(code: int, status: int, sid: str, given: dict[str, Any], face: V1) -> None:
    before = [state(one) for one in face.participants().list()]
    error = refused(
        lambda: face.one(sid).update(**given),
        TwilioRestException,
        status=status, code=code, uri=face.uri(sid), method="POST", details=None,
    )
    same("the SDK's words", error.msg.startswith("Unable to update record: ") and len(error.msg) > 30, True)
    same("what is there", [state(one) for one in face.participants().list()], before)


def binding(address: str | None = None, proxy: str | None = None, projected: str | None = None) -> dict[str, str]:
    given = {"address": address, "proxy_address": proxy, "projected_address": projected}
    return {f"messaging_binding_{name}": value for name, value in given.items() if value is not None}


for code, status, given in [
    (20001, 400, {"identity": "eve", "role_sid": "RL1"}),
    (50204, 400, {}),
    (50204, 400, binding(proxy=PROXY)),
    (50207, 400, {"identity": "i" * 257}),
    (50211, 400, {"identity": "eve", **binding(ADDRESS)}),
    (50303, 400, {"identity": "eve", "attributes": f'"{"x" * 4095}"'}),
    (50304, 400, {"identity": "eve", "attributes": "{"}),
    (50308, 400, {"identity": "eve", "date_created": "yesterday"}),
    (50309, 400, {"identity": "eve", "date_updated": "yesterday"}),
    (50407, 400, binding("a" * 257, PROXY)),
    (50407, 400, binding("", PROXY)),
    (50408, 400, binding(ADDRESS, "b" * 257)),
    (50408, 400, binding(ADDRESS, "")),
    (50409, 400, binding(ADDRESS, ADDRESS)),
    (50414, 400, binding(f"whatsapp:{ADDRESS}", PROXY)),
    (50416, 409, binding("+15550100001", "+15550109001")),
    (50433, 409, {"identity": "alice"}),
    (50442, 400, binding(ADDRESS, projected=PROXY)),
]:
    v1(partial(refuses_create, code, status, given))

for code, status, sid, given in [
    (50207, 400, ALICE, {"identity": "i" * 257}),
    (50211, 400, SMS, {"identity": "eve"}),
    (50303, 400, ALICE, {"attributes": f'"{"x" * 4095}"'}),
    (50304, 400, ALICE, {"attributes": "none"}),
    (50308, 400, ALICE, {"date_created": "2019-05-15"}),
    (50309, 400, ALICE, {"date_updated": "2019-05-15"}),
    (50408, 400, SMS, binding(proxy="b" * 257)),
    (50409, 400, SMS, binding(proxy="+15550100001")),
    (50414, 400, SMS, binding(proxy="rcs:sender")),
    (50421, 400, ALICE, {"last_read_message_index": -1}),
    (50432, 404, NOBODY, {"attributes": "{}"}),
    # By SID only: the identity is for fetching.
    (50432, 404, "alice", {"attributes": "{}"}),
    (50433, 409, ALICE, {"identity": "bob"}),
    (50440, 400, ALICE, binding(proxy=PROXY)),
    (50441, 400, SMS, binding(proxy="+15550109001")),
    (50442, 400, SMS, binding(projected=PROXY)),
]:
    v1(partial(refuses_update, code, status, sid, given))


@v1
def refuses_a_group_member_twice(face: V1) -> None:
    face.participants().create(**binding(ADDRESS))
    call = partial(face.participants().create, **binding(ADDRESS))
    refused(call, TwilioRestException, status=409, code=50437, uri=face.uri())


@v1
def says_where_a_pair_is_bound(face: V1) -> None:
    other = face.sandbox.control("POST", "conversations", {})["conversations"][0]
    call = partial(face.participants(other).create, **binding("+15550100001", "+15550109001"))
    error = refused(call, TwilioRestException, status=409, code=50416, uri=face.uri(conversation=other))
    same("the conversation in its text", V1_CONVERSATION in error.msg, True)


@v1
def finds_no_participant(face: V1) -> None:
    for call, method in ((face.one(NOBODY).fetch, "GET"), (face.one(NOBODY).delete, "DELETE")):
        refused(call, TwilioRestException, status=404, code=50432, uri=face.uri(NOBODY), method=method)
    refused(face.one("nobody").fetch, TwilioRestException, status=404, code=50432)


@v1
def finds_no_conversation(face: V1) -> None:
    missing = face.participants("CH000000000000000000000000000000ff")
    refused(partial(missing.create, identity="eve"), TwilioRestException, status=404, code=20404)
    refused(missing.get(ALICE).fetch, TwilioRestException, status=404, code=20404)
    refused(missing.page, TwilioRestException, status=404, code=20404)


@v1
def knows_its_methods(face: V1) -> None:
    # No call of the SDK's asks for this: the method is put into its own machinery.
    delete = partial(face.sandbox.client().conversations.v1.delete, "DELETE", face.uri())
    error = refused(delete, TwilioRestException, status=405, code=20004, uri=face.uri())
    same("the SDK's words", error.msg, "Unable to delete record: Method not allowed")


@v1
def closed_conversations_are_read_only(face: V1) -> None:
    face.sandbox.control("POST", "conversations", {"conversation": V1_CONVERSATION, "state": "closed"})
    closed = {"status": 400, "code": 50377}
    refused(partial(face.participants().create, identity="eve"), TwilioRestException, **closed)
    refused(partial(face.one(ALICE).update, attributes="{}"), TwilioRestException, **closed)
    refused(face.one(ALICE).delete, TwilioRestException, **closed)
    same("who can be read", len(face.participants().list()), 3)


@v1
def fifty_do_not_chat(face: V1) -> None:
    for number in range(49):
        face.participants().create(**binding(f"+155501006{number:02}", PROXY))
    call = partial(face.participants().create, **binding("+15550100700", PROXY))
    refused(call, TwilioRestException, status=400, code=50418, uri=face.uri())
    face.participants().create(identity="eve")


@v1
def a_thousand_take_part(face: V1) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V1_CONVERSATION, "count": 996})
    face.participants().create(identity="the last one")
    call = partial(face.participants().create, identity="one too many")
    refused(call, TwilioRestException, status=400, code=50417, uri=face.uri())
    same("how many there are", len(face.participants().list()), 1000)


@v1
def reports_a_throttled_request(face: V1) -> None:
    face.sandbox.fault(match={"api": "v1"}, status=429, code=20429, message="Too Many Requests", retry_after="3")
    error = refused(face.one(ALICE).fetch, TwilioRestException, status=429, code=20429, uri=face.uri(ALICE))
    same("the SDK's words", error.msg, "Unable to fetch record: Too Many Requests")
    same("Retry-After", face.sandbox.http.last.headers["Retry-After"], "3")
    face.shows(face.one(ALICE).fetch(), identity="alice")


@v1
def reports_a_failure_without_a_body(face: V1) -> None:
    face.sandbox.fault(match={"api": "v1"}, status=503)
    refused(face.one(ALICE).fetch, TwilioRestException, status=503, code=503, msg="Unable to fetch record")


# v1: the conversations of a participant


@v1
def looks_up_by_identity(face: V1) -> None:
    sid = face.sandbox.control("POST", "conversations", {
        "unique_name": "case-1", "friendly_name": "Case 1", "attributes": '{"a":1}', "state": "inactive",
        "timers": {"date_closed": "2019-05-15T13:37:35Z"}, "participants": [{"identity": "erin"}],
    })["conversations"][0]
    (found,) = face.root().participant_conversations.list(identity="erin")
    conversation = f"{face.sandbox.base}/v1{face.prefix}/Conversations/{sid}"
    holds(
        found,
        account_sid=ACCOUNT, chat_service_sid=SERVICE, participant_sid="MB00000000000000000000000000000004",
        participant_identity="erin", participant_messaging_binding=None, conversation_sid=sid,
        conversation_unique_name="case-1", conversation_friendly_name="Case 1", conversation_attributes='{"a":1}',
        conversation_created_by="system", conversation_state="inactive",
        conversation_timers={"date_closed": "2019-05-15T13:37:35Z"},
        links={"participant": f"{conversation}/Participants/{found.participant_sid}", "conversation": conversation},
    )
    same("the user's SID", (found.participant_user_sid[:2], len(found.participant_user_sid)), ("US", 34))
    is_date("conversation_date_created", found.conversation_date_created)
    is_date("conversation_date_updated", found.conversation_date_updated)


@v1
def looks_up_by_address(face: V1) -> None:
    (found,) = face.root().participant_conversations.list(address="+15550100001")
    bound = {**PAIR, "proxy_address": "+15550109001", "projected_address": None, "level": None, "name": None}
    holds(
        found,
        participant_sid=SMS, participant_identity=None, participant_user_sid=None, participant_messaging_binding=bound,
        conversation_sid=V1_CONVERSATION, conversation_unique_name="sandbox", conversation_state="active",
        conversation_attributes="{}", conversation_timers={},
    )


@v1
def looks_up_page_by_page(face: V1) -> None:
    face.sandbox.control("POST", "conversations", {"count": 120, "participants": [{"identity": "e r+n"}]})
    lookup = face.root().participant_conversations
    same("all", len({one.conversation_sid for one in lookup.list(identity="e r+n")}), 120)
    # The SDK asks for a page of 120.
    same("up to a limit", len(lookup.list(identity="e r+n", limit=120)), 120)
    first = lookup.page(identity="e r+n", page_size=100)
    same("the largest page", len(list(first)), 50)
    back = first.next_page().next_page().previous_page().previous_page()
    same("there and back", back._payload["conversations"], first._payload["conversations"])


@v1
def looks_up_nobody(face: V1) -> None:
    same("nobody's", face.root().participant_conversations.list(identity="nobody"), [])
    same("nobody's", face.root().participant_conversations.list(address="+15550100999"), [])


@v1
def looks_up_exactly_one(face: V1) -> None:
    page = face.root().participant_conversations.page
    for given in ({}, {"identity": "alice", "address": "+15550100001"}):
        error = refused(partial(page, **given), TwilioRestException, status=400, code=50451)
        same("the SDK's words", error.msg.startswith("Unable to fetch page: Only one identifier"), True)


# v2

NOORS = {"channel": "SMS", "address": "+15550100002", "channelId": None}
DANAS = {"channel": "EMAIL", "address": "dana@example.com", "channelId": "c1"}


@v2
def creates_with_everything(face: V2) -> None:
    created = face.create(name="Dana S.", type="CUSTOMER", profileId="mem_profile_1", addresses=[DANAS])
    holds(
        created,
        conversation_id=V2_CONVERSATION, account_id=ACCOUNT, name="Dana S.", type="CUSTOMER", addresses=[DANAS],
        profile_id="mem_profile_1", id="conv_participant_00000000000000000000000004",
    )
    same("the one that is fetched", state(face.participants()(created.id).fetch()), state(created))


@v2
def creates_with_an_address_alone(face: V2) -> None:
    for channel in ("VOICE", "SMS", "RCS", "WHATSAPP", "CHAT", "EMAIL", "VIDEO"):
        created = face.create(addresses=[{"channel": channel, "address": "here"}])
        address = {"channel": channel, "address": "here", "channelId": None}
        holds(created, name=None, type=None, profile_id=None, addresses=[address])


@v2
def answers_with_a_status_and_headers(face: V2) -> None:
    request = V2ParticipantList.CreateParticipantInConversationRequest({"addresses": [DANAS]})
    created = face.participants().create_with_http_info(request)
    same("the status", created.status_code, 201)
    same("the content type", created.headers["content-type"], "application/json")
    same("a request's id", len(created.headers["twilio-request-id"]), 34)


@v2
def fetches(face: V2) -> None:
    noor = face.participants()(NOOR).fetch()
    holds(noor, id=NOOR, conversation_id=V2_CONVERSATION, account_id=ACCOUNT, name="Noor", type="CUSTOMER")
    holds(noor, profile_id="mem_profile_00000000000000000000000001", addresses=[NOORS])
    # Twilio's dates have up to nine digits of a second, which this SDK leaves as text.
    holds(noor, created_at="2026-01-05T09:00:01.000000000Z", updated_at="2026-01-05T09:00:01.000000000Z")


@v2
def replaces_the_whole(face: V2) -> None:
    before = face.participants()(NOOR).fetch()
    replaced = face.update(NOOR, name="Only a name")
    holds(replaced, id=NOOR, name="Only a name", type=None, profile_id=None, addresses=[])
    holds(replaced, created_at=before.created_at)
    same("whether it was updated", replaced.updated_at > before.updated_at, True)
    same("the one that is fetched", state(face.participants()(NOOR).fetch()), state(replaced))


@v2
def replaces_with_its_own_address(face: V2) -> None:
    replaced = face.update(NOOR, name="Noor", type="AGENT", addresses=[NOORS, DANAS])
    holds(replaced, name="Noor", type="AGENT", addresses=[NOORS, DANAS])


@v2
def pages_by_tokens_both_ways(face: V2) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V2_CONVERSATION, "count": 2})
    first = face.participants().page(page_size=2)
    same("what stands in meta", (first.key, first.page_size, first.previous_token), ("participants", 2, None))
    second = first.next_page()
    third = second.next_page()
    ids = [[one.id[-1] for one in page] for page in (first, second, third)]
    same("the ids' ends", ids, [["1", "2"], ["3", "4"], ["5"]])
    same("what follows the last page", (third.next_token, third.next_page()), (None, None))
    same("back to the second page", [one.id[-1] for one in third.previous_page()], ["3", "4"])
    again = face.participants().page(page_size=2, page_token=second.next_token)
    same("a page by its token", [one.id[-1] for one in again], ["5"])


@v2
def lists_and_streams_by_tokens(face: V2) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V2_CONVERSATION, "count": 1097})
    same("all", len({one.id for one in face.participants().list()}), 1100)
    same("up to a limit", len(face.participants().list(limit=7)), 7)
    same("streamed", len(list(face.participants().stream(limit=9, page_size=4))), 9)


@v2
def lists_with_headers(face: V2) -> None:
    # For these calls the SDK spells the query in PascalCase.
    face.sandbox.control("POST", "populate", {"conversation": V2_CONVERSATION, "count": 2})
    first = face.participants().page_with_http_info(page_size=2).data
    same("the page's size", len(list(first)), 2)
    second = face.participants().page_with_http_info(page_size=2, page_token=first.next_token).data
    same("the ids' ends", [one.id[-1] for one in second], ["3", "4"])
    same("all", len(face.participants().list_with_http_info(page_size=2).data), 5)


@v2
def page_sizes_of_v2(face: V2) -> None:
    face.sandbox.control("POST", "populate", {"conversation": V2_CONVERSATION, "count": 1097})
    for asked, got in [(None, 50), (1, 1), (1000, 1000)]:
        page = face.participants().page(**({"page_size": asked} if asked else {}))
        same(f"a page of {asked}", (len(list(page)), page.page_size), (got, got))


def problem(face: V2, call: Callable[[], Any], status: int, code: int, title: str, path: str, pointers=()) -> Any:
    """An error after RFC 9457, which the SDK must have read as one."""
    error = refused(
        call,
        TwilioServiceException,
        status=status, code=code, title=title, instance=path, type=f"https://www.twilio.com/docs/api/errors/{code}",
    )
    same("whether there is a detail", bool(error.detail), True)
    same("the pointers", [one["pointer"] for one in error.errors], list(pointers))
    same("the details of errors", all(one["detail"] for one in error.errors), True)
    same("the content type", face.sandbox.http.last.headers["content-type"], "application/problem+json")
    return error


def refuses_body(pointers: list[str], payload: dict[str, Any], face: V2) -> None:
    problem(face, partial(face.create, **payload), 400, 20001, "Bad Request", f"/v2{face.uri()}", pointers)
    same("how many there are", len(face.participants().list()), 3)


def at(address: str, channel: str = "SMS") -> dict[str, str]:
    return {"channel": channel, "address": address}


for pointers, payload in [
    (["/addresses"], {"name": "Dana"}),
    (["/addresses"], {"addresses": []}),
    (["/addresses/0/address"], {"addresses": [at("")]}),
    (["/addresses/0/address"], {"addresses": [at("1" * 255)]}),
    (["/addresses/0/channel"], {"addresses": [at("a", "sms")]}),
    (["/addresses/0/channel", "/addresses/1/address"], {"addresses": [{"address": "a"}, {"channel": "SMS"}]}),
    (["/addresses/1"], {"addresses": [at("a"), at("a")]}),
    (["/name", "/type"], {"name": "x" * 257, "type": "customer", "addresses": [at("a")]}),
    (["/profileId"], {"profileId": "", "addresses": [at("a")]}),
]:
    v2(partial(refuses_body, pointers, payload))


@v2
def takes_what_is_just_short_enough(face: V2) -> None:
    created = face.create(name="é" * 256, addresses=[at("1" * 254)])
    holds(created, name="é" * 256)
    same("the address", created.addresses[0]["address"], "1" * 254)


def refuses_page(pointer: str, given: dict[str, Any], face: V2) -> None:
    problem(face, partial(face.participants().page, **given), 400, 20001, "Bad Request", f"/v2{face.uri()}", [pointer])


for pointer, given in [
    ("#/pageSize", {"page_size": 0}),
    ("#/pageSize", {"page_size": 1001}),
    ("#/pageToken", {"page_token": "nonsense"}),
]:
    v2(partial(refuses_page, pointer, given))


@v2
def finds_no_such_thing(face: V2) -> None:
    missing = "conv_participant_00000000000000000000000099"

    for call in (face.participants()(missing).fetch, partial(face.update, missing, name="Dana")):
        problem(face, call, 404, 20404, "Not Found", f"/v2{face.uri(missing)}")
    nowhere = face.participants("conv_conversation_none")
    request = V2ParticipantList.CreateParticipantInConversationRequest({"addresses": [DANAS]})
    for call in (nowhere.page, partial(nowhere.create, request)):
        problem(face, call, 404, 20404, "Not Found", f"/v2{face.uri(conversation='conv_conversation_none')}")


@v2
def names_who_is_in_the_way(face: V2) -> None:
    creating = partial(face.create, addresses=[NOORS])
    updating = partial(face.update, ROBIN, addresses=[NOORS])
    for call, path in ((creating, face.uri()), (updating, face.uri(ROBIN))):
        problem(face, call, 409, 20409, "Conflict", f"/v2{path}")
        same("the header", face.sandbox.http.last.headers["X-Conflicting-Resource-Id"], NOOR)


@v2
def knows_no_delete_and_no_patch(face: V2) -> None:
    version = face.sandbox.client().conversations.v2
    delete = partial(version.delete, "DELETE", face.uri(NOOR))
    patch = partial(version.update, "PATCH", face.uri(NOOR), data={"name": "Dana"})
    for call in (delete, patch):
        problem(face, call, 405, 20004, "Method Not Allowed", f"/v2{face.uri(NOOR)}")


@v2
def takes_json_only(face: V2) -> None:
    create = face.sandbox.client().conversations.v2.create
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    call = partial(create, "POST", face.uri(), data={"name": "Dana"}, headers=form)
    problem(face, call, 415, 20001, "Unsupported Media Type", f"/v2{face.uri()}")


def reports_failure(status: int, code: int, title: str, face: V2) -> None:
    face.sandbox.fault(match={"api": "v2"}, status=status, code=code, message="not now", retry_after="3")
    fetch = face.participants()(NOOR).fetch
    error = problem(face, fetch, status, code, title, f"/v2{face.uri(NOOR)}")
    same("the detail", error.detail, "not now")
    same("Retry-After", face.sandbox.http.last.headers["Retry-After"], "3")
    holds(fetch(), id=NOOR)


for status, code, title_ in [
    (429, 20429, "Too Many Requests"),
    (500, 20500, "Internal Server Error"),
    (503, 20503, "Service Unavailable"),
]:
    v2(partial(reports_failure, status, code, title_))


# Who may log in


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


def main() -> None:
    # Its handling of access tokens logs every request.
    logging.getLogger("twilio").setLevel(logging.WARNING)
    sandbox = Sandbox(sys.argv[1])
    faces = [
        (V1(sandbox, "v1", ""), V1_CHECKS + BOTH),
        (V1(sandbox, "v1 Services", f"/Services/{SERVICE}"), V1_CHECKS + BOTH),
        (V2(sandbox), V2_CHECKS + BOTH),
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

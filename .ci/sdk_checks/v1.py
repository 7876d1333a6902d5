"""What is checked of v1, on both paths."""

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable

from harness import ACCOUNT, SERVICE, Sandbox, holds, is_date, refused, same, state
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

V1_CONVERSATION = "CH00000000000000000000000000000001"
ALICE = "MB00000000000000000000000000000001"
SMS = "MB00000000000000000000000000000003"
NOBODY = "MB00000000000000000000000000000099"
WHEN = datetime(2019, 5, 15, 13, 37, 35, tzinfo=timezone.utc)
OTHER_ROLE = "RL000000000000000000000000000000aa"


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


CHECKS: list[Callable[[V1], None]] = []


def v1(check: Callable[[V1], None]) -> None:
    CHECKS.append(check)


# Creates

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
    bound = {"type": channel, "address": address, "proxy_address": proxy}
    v1(partial(creates, given, {"messaging_binding": bound}))

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


# Fetches, updates, removals


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


# Lists


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


# Refusals


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


# The conversations of a participant


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

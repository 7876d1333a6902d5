"""What is checked of v2."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

from harness import ACCOUNT, Sandbox, holds, refused, same, state
from twilio.base.exceptions import TwilioServiceException
from twilio.rest import Client
from twilio.rest.conversations.v2.participant import ParticipantList

V2_CONVERSATION = "conv_conversation_00000000000000000000000001"
NOOR = "conv_participant_00000000000000000000000001"
ROBIN = "conv_participant_00000000000000000000000002"


@dataclass
class V2:
    sandbox: Sandbox
    name: str = "v2"

    def participants(self, conversation: str = V2_CONVERSATION, client: Client | None = None) -> Any:
        return (client or self.sandbox.client()).conversations.v2.participants(conversation)

    def fetch(self, client: Client) -> Any:
        return self.participants(client=client)(NOOR).fetch()

    def create(self, **payload: Any) -> Any:
        return self.participants().create(ParticipantList.CreateParticipantInConversationRequest(payload))

    def update(self, id: str, **payload: Any) -> Any:
        return self.participants()(id).update(ParticipantList.UpdateParticipantInConversationRequest(payload))

    def uri(self, id: str = "", conversation: str = V2_CONVERSATION) -> str:
        return f"/Conversations/{conversation}/Participants" + (f"/{id}" if id else "")


CHECKS: list[Callable[[V2], None]] = []


def v2(check: Callable[[V2], None]) -> None:
    CHECKS.append(check)


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
    request = ParticipantList.CreateParticipantInConversationRequest({"addresses": [DANAS]})
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
    request = ParticipantList.CreateParticipantInConversationRequest({"addresses": [DANAS]})
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

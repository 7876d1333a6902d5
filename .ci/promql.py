"""Asks a Prometheus that scrapes the gateway every second.

    python3 promql.py scraped http://HOST:PORT                     # waits for a scrape that begins from now on
    python3 promql.py answers http://HOST:PORT docs/metrics.md     # asks what the document's table of questions says
    python3 promql.py rules http://HOST:PORT                       # looks at the rules that it evaluates
    python3 promql.py dashboard http://HOST:PORT DASHBOARD.json    # asks what each panel asks
    python3 promql.py runbooks http://HOST:PORT docs/runbooks.md   # asks what the blocks marked `promql` ask

The table is the one with the columns `question` and `PromQL`. Each query must answer, over a shorter range than the
document's, with the sample that PLAUSIBLE describes. Rules and panels must have a value, but for what QUIET names.
"""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

DEADLINE_SECONDS = 60
POLL_SECONDS = 0.2
# Longer than the deadline, so that what the calls have counted stays within it.
RANGE, SHORTER = "[5m]", "[2m]"

Samples = list[tuple[dict[str, str], float]]

GET_PARTICIPANT = {"rpc_method": "participant.v1.ParticipantService/GetParticipant"}
# Per question: labels that a sample must have, and the two values between which, both excluded, it is plausible.
PLAUSIBLE: dict[str, tuple[dict[str, str], float, float]] = {
    "how many calls a second": (GET_PARTICIPANT, 0, 10),
    "how many of them fail for a reason that is not the caller's": ({}, 0, 10),
    "how long they take, 99th percentile": (GET_PARTICIPANT, 0, 10),
    "is it Twilio": ({"url_template": "/v1/Conversations/{ConversationSid}/Participants/{Sid}"}, 0, 10),
    "does Twilio refuse": ({"http_response_status_code": "503"}, 0, 10),
    "has Twilio's API changed": ({"participant_api_version": "v1", "participant_upstream_key": "new_key"}, 0, 10),
    "how often was an account's API left alone, because it failed": ({"participant_api_version": "v1"}, 0, 1000),
    "how much of what Twilio may have under way is": ({}, -1, 1.1),
    "how many requests are held back, because too many are under way": ({"participant_upstream_reason": "queue_full"}, 0, 10),
    "do callers reach a bound of the listener": ({}, 0, 10),
    "how much is told past its lifetime, because Twilio fails": ({}, 0, 10),
    "what the cache saves": ({}, 0, 1),
}

# What the calls of `.ci/metrics` give no value: the gateway has no Redis, no Kinesis and no TLS there, nobody has to
# prove anything, and its budgets last.
QUIET = re.compile(r"participant_(auth|bus|jwks|kinesis|tls)_|participant_slo_burn:(fast|slow)")

# Straight to it, whatever proxy the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(prometheus: str, query: str) -> Samples:
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with OPENER.open(url, timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    return [(sample["metric"], float(sample["value"][1])) for sample in result]


def until_none(problem: Callable[[], str | None], deadline: float) -> None:
    """Ends when there is no problem any more, or with the last one at the deadline."""
    while True:
        try:
            found = problem()
        except OSError as error:
            # It may not listen yet. A refused query says why in its body.
            found = f"{error} {error.read().decode() if hasattr(error, 'read') else ''}"
        if found is None:
            return
        if time.monotonic() > deadline:
            sys.exit(f"after {DEADLINE_SECONDS} s: {found}")
        time.sleep(POLL_SECONDS)


def scraped(prometheus: str, deadline: float) -> None:
    # Prometheus moves the time of a scrape by some milliseconds, to keep them evenly apart.
    now = time.time() + 0.1

    def problem() -> str | None:
        scrapes = ask(prometheus, "timestamp(up == 1)")
        return None if any(at > now for _, at in scrapes) else f"no scrape that succeeded since {now}: {scrapes}"

    until_none(problem, deadline)


def cells(row: str) -> list[str]:
    """Of a Markdown table's row, in which a bar that is text is escaped."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def questions(markdown: str) -> dict[str, str]:
    rows = iter(markdown.splitlines())
    if not any(cells(row) == ["question", "PromQL"] for row in rows):
        sys.exit("the document has no table with the columns question and PromQL")
    next(rows)
    found: dict[str, str] = {}
    for row in rows:
        if not row.startswith("|"):
            break
        question, query = cells(row)
        found[question] = query.strip("`")
    return found


def answers(prometheus: str, path: str, deadline: float) -> None:
    with open(path, encoding="utf-8") as file:
        asked = questions(file.read())
    if asked.keys() != PLAUSIBLE.keys():
        sys.exit(f"{path} and .ci/promql.py do not know the same questions: {asked.keys() ^ PLAUSIBLE.keys()}")
    for question, query in asked.items():
        if RANGE not in query:
            sys.exit(f"{path}: no {RANGE} in {query}")
        labels, low, high = PLAUSIBLE[question]

        def problem() -> str | None:
            samples = ask(prometheus, query.replace(RANGE, SHORTER))
            values = [value for metric, value in samples if labels.items() <= metric.items()]
            if values and all(low < value < high for value in values):
                print(f"  ok  {question}: {', '.join(f'{value:.4g}' for value in values)}")
                return None
            return f"{question}: {query}\nhas no value between {low} and {high} for {labels or 'any labels'}: {samples}"

        until_none(problem, deadline)
    print(f"{len(asked)} questions of {path} have an answer")


def ask_all(prometheus: str, queries: dict[str, str], deadline: float) -> None:
    """Each must have a value that is a number, or none if it is about what is quiet."""
    for name, query in queries.items():

        def problem() -> str | None:
            has_value = any(value == value for _, value in ask(prometheus, query))
            is_quiet = QUIET.search(query) is not None
            return None if has_value != is_quiet else f"{name}: {query}\n{'has a value' if has_value else 'has no value'}"

        until_none(problem, deadline)
    print(f"{len(queries)} queries asked")


def rules(prometheus: str, deadline: float) -> None:
    """All are evaluated without an error, and what is recorded has a value."""
    recorded: dict[str, str] = {}

    def problem() -> str | None:
        with OPENER.open(f"{prometheus}/api/v1/rules", timeout=10) as answer:
            found = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
        recorded.update({rule["name"]: rule["name"] for rule in found if rule["type"] == "recording"})
        bad = [f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in found if rule["health"] != "ok"]
        return None if found and not bad else f"{len(found)} rules; not evaluated well: {bad}"

    until_none(problem, deadline)
    ask_all(prometheus, recorded, deadline)


def dashboard(prometheus: str, path: str, deadline: float) -> None:
    with open(path, encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    queries = {}
    for panel in panels:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", SHORTER.strip("[]"))
            queries[f"{panel['title']} {target['refId']}"] = re.sub(r"\$[a-z]+", ".*", query)
    ask_all(prometheus, queries, deadline)


def runbooks(prometheus: str, path: str) -> None:
    """That they are PromQL; what they look for, nobody hopes to find."""
    with open(path, encoding="utf-8") as file:
        blocks = re.findall(r"^```promql\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    for query in blocks:
        try:
            ask(prometheus, query)
        except urllib.error.HTTPError as error:
            sys.exit(f"{path}: {query}: {error.read().decode()}")
    if not blocks:
        sys.exit(f"{path} has no block marked `promql`")
    print(f"{len(blocks)} queries of {path} asked")


def main() -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    match sys.argv[1:]:
        case ["scraped", prometheus]:
            scraped(prometheus, deadline)
        case ["answers", prometheus, path]:
            answers(prometheus, path, deadline)
        case ["rules", prometheus]:
            rules(prometheus, deadline)
        case ["dashboard", prometheus, path]:
            dashboard(prometheus, path, deadline)
        case ["runbooks", prometheus, path]:
            runbooks(prometheus, path)
        case _:
            sys.exit(__doc__)


main()

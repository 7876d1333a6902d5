"""Runs the ```console blocks of a Markdown file and compares what the commands print with what stands below them.

    python3 tour.py README.md [TEXT=REPLACEMENT ...]

A line that begins with `$ ` is a command, and goes on in the next line where it ends in a backslash. The variables that it
sets are there for those after it. The lines below it, up to the next command or the end of the block, are what it must
print, standard error included. `...` stands for any text within a line, and alone in a line for any number of lines. Runs
of blanks count as one. A command must fail where its expected text begins with `ERROR`, and must succeed everywhere else.
Each TEXT is replaced, in the commands and in what they print, so that the file can name the default addresses while the
process under test is bound elsewhere.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

TIMEOUT_SECONDS = 60

# Each command has a shell of its own, which hands on its variables when it ends.
PROLOGUE = "set -a; trap 'env -0 >\"$TOUR_VARIABLES\"' EXIT\n"


@dataclass
class Step:
    line: int
    command: str
    expected: list[str] = field(default_factory=list)

    @property
    def wants_failure(self) -> bool:
        return bool(self.expected) and self.expected[0].startswith("ERROR")


def steps(markdown: str) -> list[Step]:
    found: list[Step] = []
    inside = continues = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.startswith("```"):
            inside, continues = line.strip() == "```console", False
        elif not inside:
            continue
        elif continues:
            found[-1].command += "\n" + line
            continues = line.endswith("\\")
        elif line.startswith("$ "):
            found.append(Step(number, line[2:]))
            continues = line.endswith("\\")
        elif found:
            found[-1].expected.append(line)
        else:
            sys.exit(f"line {number}: a console block begins with text that is no command")
    for step in found:
        # Blank lines before the next command are layout.
        while step.expected and not step.expected[-1].strip():
            step.expected.pop()
    return found


def blanks(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text).strip()


def pattern(expected: list[str]) -> re.Pattern[str]:
    lines = []
    for line in map(blanks, expected):
        if line == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(".*?".join(map(re.escape, line.split("..."))) + r"\n")
    return re.compile("".join(lines))


def run(step: Step, variables: dict[str, str]) -> str | None:
    """What is wrong, if anything is."""
    try:
        done = subprocess.run(
            ["bash", "-c", PROLOGUE + step.command],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {TIMEOUT_SECONDS} s"
    with open(variables["TOUR_VARIABLES"], encoding="utf-8", errors="surrogateescape") as file:
        variables.update(entry.split("=", 1) for entry in file.read().split("\0") if entry)
    printed = [blanks(line) for line in done.stdout.decode(errors="replace").splitlines()]
    text = "".join(line + "\n" for line in printed)
    if (done.returncode != 0) != step.wants_failure:
        return f"ended with {done.returncode} and printed:\n{text}"
    if not pattern(step.expected).fullmatch(text):
        wanted = "\n".join(step.expected)
        return f"should print:\n{wanted}\n--- and printed:\n{text}"
    return None


def main() -> None:
    path, *replacements = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        markdown = file.read()
    for replacement in replacements:
        old, new = replacement.split("=", 1)
        if old not in markdown:
            sys.exit(f"{path} does not mention {old}, which was to be replaced")
        markdown = markdown.replace(old, new)
    tour = steps(markdown)
    if not tour:
        sys.exit(f"{path} has no console block")
    with tempfile.NamedTemporaryFile() as handed_on:
        variables = {**os.environ, "TOUR_VARIABLES": handed_on.name}
        for step in tour:
            problem = run(step, variables)
            if problem:
                sys.exit(f"{path}:{step.line}: $ {step.command}\n{problem}")
            print(f"  ok  {path}:{step.line}")
    print(f"{len(tour)} commands of {path} print what it says")


main()

"""What a user sees of each bad input (bad_inputs.py), and that docs/bad-inputs.md says the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.system.bad_inputs import CASES, Case, Desk, Labs, Seen

PAGE = Path(__file__).parents[2] / "docs" / "bad-inputs.md"
ANEW = "WRITE_DOCS=1 make test PYTEST_ARGS=tests/system/test_bad_inputs.py"
INTRODUCTION = f"""\
# Bad inputs

What you see when something is wrong, and what then goes on. Each row has been made to happen with real processes by
`tests/system/test_bad_inputs.py`, which also compares this page with what it saw. To write it anew:
`{ANEW}`.

Paths and ports are the usual ones, and `N` stands for a number that differs. Words without a label are on the terminal
of the command; those of the daemon are in its journal, too. `log:` is a line of the log of a daemon that runs,
`status:` a line of `pupil-bridge status`, `answer:` what a client is told.

Exit status 78: the configuration has to be mended, and systemd does not start the daemon again. After 1 and 2 it does.
"""
rows: dict[tuple[str, str], str] = {}
left_out: set[tuple[str, str]] = set()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labs]:
    made = Labs(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, labs: Labs) -> Iterator[Desk]:
    made = Desk(tmp_path, labs)
    yield made
    made.close()


@pytest.mark.parametrize("case", CASES, ids=[case.happen.__name__.strip("_") for case in CASES])
def test_the_user_sees(case: Case, desk: Desk) -> None:
    try:
        seen = case.happen(desk)
    except pytest.skip.Exception:
        left_out.add((case.category, case.wrong))
        raise
    said = desk.as_on_the_page(seen.text, case.vary)
    assert re.search(case.says, said), said
    assert seen.then == case.then
    assert "Traceback" not in said
    assert "Errno" not in said, "a number is no word for a person"
    rows[case.category, case.wrong] = _row(case, Seen(said.splitlines(), seen.then))


def _row(case: Case, seen: Seen) -> str:
    shown = "<br>".join(_line(line) for line in seen.lines if line)
    return f"| {case.wrong} | {shown} | {seen.then} |"


def _line(line: str) -> str:
    """A line as code, what stands before it in plain letters."""
    where, text = re.fullmatch(r"((?:log|status|status --json|answer): )?(.*)", line).groups()  # type: ignore[union-attr]
    if line.startswith("no answer"):
        return line
    indent = len(text) - len(text.lstrip())
    text = text.strip().replace("|", r"\|")
    code = f"`` {text} ``" if "`" in text else f"`{text}`"
    return f"{where or ''}{'&emsp;' * (indent // 2)}{code}"


def _page(found: dict[tuple[str, str], str]) -> str:
    parts = [INTRODUCTION]
    for category, cases in groupby(CASES, key=lambda case: case.category):
        lines = [
            f"## {category}",
            "",
            "| what is wrong | what you see | exit status, or what goes on |",
            "|---|---|---|",
        ]
        lines += [found[category, case.wrong] for case in cases]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows_of(page: str) -> dict[tuple[str, str], str]:
    """The rows that a page has."""
    found: dict[tuple[str, str], str] = {}
    category = ""
    for line in page.splitlines():
        if line.startswith("## "):
            category = line[3:]
        elif line.startswith("| "):
            found[category, line[2:].partition(" | ")[0]] = line
    return found


def test_the_page_says_what_was_seen() -> None:
    known = {(case.category, case.wrong) for case in CASES}
    assert len(known) == len(CASES) >= 32
    if rows.keys() | left_out != known:
        pytest.skip("some cases were not chosen, or failed: the page is that of all of them")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    written = _rows_of(page)
    found = {key: rows.get(key) or written.get(key, "") for key in known}
    if os.environ.get("WRITE_DOCS") == "1":
        PAGE.write_text(_page(found), encoding="utf-8")
        return
    assert page == _page(found), f"docs/bad-inputs.md is not what was seen; to write it anew: {ANEW}"

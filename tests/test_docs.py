"""What the pages name exists: links and their anchors, rules, metrics, checks, faults, files, commands, arms."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lossdoctor import arms
from lossdoctor.cli import COMMANDS, main
from lossdoctor.clinic.faults import FAULTS
from lossdoctor.keys import FAMILIES, KEYS, describe
from lossdoctor.preflight import CHECKS
from lossdoctor.rules import RULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = ("rules.md", "metrics.md")
"""Written by docs/conf.py at each build, from the program itself."""
FOUND = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
PAGES = [page for page in FOUND if "_build" not in page.parts and page.name not in GENERATED]
SYMPTOMS = sorted(set((DOCS / "symptoms").glob("*.md")) - {DOCS / "symptoms" / "index.md"})
CODES = {rule.code for rule in RULES}
CODE = re.compile(rf"\b(?:{'|'.join(sorted({code[:3] for code in CODES}))})\d{{3}}\b")
PREFIXES = tuple({key.pattern.split("/")[0].split("_")[0] + "/" for key in KEYS} | {"grad_weighted/", "grad_share/"})

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
each_symptom = pytest.mark.parametrize("page", SYMPTOMS, ids=lambda page: page.stem)


def tokens(page: Path) -> list[Token]:
    """All tokens of a page, those inside of a line as well."""
    flat: list[Token] = []
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        flat += [token, *(token.children or [])]
    return flat


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        if found := {"link_open": "href", "image": "src"}.get(token.type):
            yield str(token.attrs[found])


def inline_code(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_inline"]


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks in one of these languages, and with "" indented ones too."""
    found = [token for token in tokens(page) if token.type in ("fence", "code_block")]
    return [token.content for token in found if (token.info.split() or [""])[0] in languages]


def anchors(page: Path) -> set[str]:
    """The ids of the headings, as GitHub and MyST make them; of the page of rules, from the rules."""
    if page.name == "rules.md":
        return {f"{rule.code}-{rule.name}".lower() for rule in RULES}
    if page.name == "metrics.md":
        return set(FAMILIES)
    found = tokens(page)
    titles = [after.content for token, after in itertools.pairwise(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{link}: https only"
            assert "." in parts.netloc, link
            if parts.netloc == "github.com" and len(parts.path.split("/")) > 3:
                assert re.fullmatch(r"/[\w.-]+/[\w.-]+/(issues|pull)/\d+", parts.path), link
            continue
        target = page if not parts.path else (page.parent / parts.path).resolve()
        generated = target.name in GENERATED and DOCS in target.parents
        assert generated or target.exists(), f"{link}: there is no {target.relative_to(ROOT)}"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{link}: one of {sorted(anchors(target))}"


@each_page
def test_rules_that_are_named_exist(page: Path) -> None:
    named = set(CODE.findall(page.read_text(encoding="utf-8")))
    assert named <= CODES


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(r"(tests|examples|benchmarks|src|docs)/[\w./-]+", code):
            assert (ROOT / code).exists() or Path(code).name in GENERATED, code


@each_page
def test_commands_that_are_shown_exist(page: Path) -> None:
    for command, rest in shown_commands(page):
        assert command in COMMANDS, command
        known = main.get_command(main.make_context("lossdoctor", [command]), command)
        assert known is not None
        options = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest[: rest.index("--")] if "--" in rest else rest:
            if word.startswith("-"):
                assert word.partition("=")[0] in {*options, "--help", "-h"}, f"lossdoctor {command} {word}"
        if "--arms" in rest:
            for arm in rest[rest.index("--arms") + 1].split(","):
                arms.parse(arm)


def shown_commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of ours in a block for a terminal: its name, and what stands behind it."""
    for block in blocks(page, "console", "bash", "sh", ""):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "lossdoctor " in line[:14] else []
            if len(words) > 1 and words[0] == "lossdoctor" and re.fullmatch(r"[a-z]+", words[1]):
                yield words[1], words[2:]


def metric_names(page: Path) -> Iterator[str]:
    """Names in a page that are meant as metrics: patterns, or names with a beginning that metrics have."""
    for code in inline_code(page):
        name = code.replace("\\|", "|")
        if re.fullmatch(r"[a-z_]+/[\w<>@{}.|]+", name) and name.startswith(PREFIXES) and "..." not in name:
            yield name


@pytest.mark.parametrize("page", [*SYMPTOMS, DOCS / "known-traps.md", DOCS / "method.md"], ids=lambda page: page.stem)
def test_metrics_that_are_named_exist(page: Path) -> None:
    names = list(metric_names(page))
    assert names
    patterns = {key.pattern for key in KEYS}
    assert [name for name in names if name not in patterns and describe(name) is None] == []


# The traps


def traps() -> list[list[str]]:
    """The rows of the page of traps, as text: trap, curves, what tells, caught by, seen in."""
    rows = [line for line in (DOCS / "known-traps.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [row for row in cells if row[0] not in ("trap", "---")]


def test_every_trap_says_who_catches_it() -> None:
    for trap, curves, tells, caught, _ in traps():
        assert trap
        assert curves
        assert tells
        checks = set(re.findall(r"preflight (\w+)", caught))
        codes = set(CODE.findall(caught))
        assert checks <= set(CHECKS), trap
        assert codes or checks or caught == "no rule", trap
        for check in checks:
            answered = {rule.code for rule in CHECKS[check].RULES}
            assert codes & answered, f"{trap}: {check} answers for {answered}"


def test_the_faults_of_the_clinic_are_among_the_traps_with_their_rules() -> None:
    faults = {fault.name: fault for fault in FAULTS}
    told: set[str] = set()
    for trap, _, _, caught, _ in traps():
        for name in re.findall(r"`([a-z-]+)`", trap):
            assert name in faults, f"{name} is no fault of the clinic"
            assert set(faults[name].rules) & set(CODE.findall(caught)), f"{name}: one of {faults[name].rules}"
            told.add(name)
    assert sorted(faults.keys() - told) == [], "give each of these a row in docs/known-traps.md"


def test_most_traps_have_a_public_source() -> None:
    sources = [source for *_, source in traps() if source]
    assert len(sources) >= 20
    assert all("](https://" in source for source in sources)


# The symptoms


@each_symptom
def test_a_symptom_answers_the_same_questions(page: Path) -> None:
    titles = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = ["The curves", "What tells", "What to do", "What settles it", "Healthy, though it looks like this"]
    assert titles == wanted
    assert CODE.search(page.read_text(encoding="utf-8")), "which rules speak of it?"
    assert f"({page.name})" in (DOCS / "symptoms" / "index.md").read_text(encoding="utf-8"), "list it in the index"

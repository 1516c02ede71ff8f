"""The pages there are in Chinese, and whether each still says what its English page says.

    python docs/translations.py                                   what is missing, incomplete or out of date
    python docs/translations.py --accept docs/zh-CN/preflight.md  its English page was looked at again: keep its digest

A translation ends with the digest of the English page it was made from. Where that page has changed since, somebody
has to read the change; what can be told without reading is compared as well: headings, rows of tables, items of lists,
code, names in backquotes, numbers, pictures and the files that links lead to.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent

TRANSLATED = (
    "index",
    "start",
    "method",
    "known-traps",
    "preflight",
    "measuring",
    "diagnosis",
    "live",
    "ablations",
    "treatment",
    "frameworks",
    "trackers",
    "functional",
    "reference-system",
    "run-folder",
    "import-export",
    "neutrality",
    "sketch",
    "traps",
    "limits",
    "symptoms/index",
    "symptoms/condition-ignored",
    "symptoms/constant-distillation",
    "symptoms/ema-samples",
    "symptoms/flat-loss",
    "symptoms/kl-to-zero",
    "symptoms/more-steps",
    "symptoms/nan",
    "symptoms/noise-samples",
    "symptoms/one-dominates",
    "symptoms/perfect-student",
    "symptoms/scale",
    "symptoms/several-gpus",
    "symptoms/sigma-to-zero",
)
GENERATED = ("rules", "metrics")  # written by conf.py in every language, from the catalogues
ENGLISH_ONLY = (  # results, and what is for developers of this program
    "balancing",
    "clinic",
    "cures",
    "extending",
    "fixes",
    "log",
    "long-runs",
    "overhead",
    "overhead-curves",
    "overhead-methods",
    "plugins",
)

PAGES = {"README.zh-CN.md": "README.md"} | {f"docs/zh-CN/{name}.md": f"docs/{name}.md" for name in TRANSLATED}
SOURCE = re.compile(r"^<!-- source: ([0-9a-f]{12}) -->$", re.MULTILINE)


def digest(english: str) -> str:
    """What a translation carries of the text it was made from."""
    return hashlib.sha256(english.encode("utf-8")).hexdigest()[:12]


def faults(page: str, root: Path = ROOT) -> list[str]:
    """What a reader of the Chinese page would miss, one sentence each; empty where nothing is."""
    source, path = PAGES[page], root / page
    if not path.exists():
        return [f"{page} is missing: translate {source}, then run: python docs/translations.py --accept {page}"]
    english, chinese = (root / source).read_text(encoding="utf-8"), path.read_text(encoding="utf-8")
    found = []
    carried = SOURCE.search(chinese)
    if carried is None or carried[1] != digest(english):
        found.append(
            f"{source} has changed since {page} was translated from it. Look at both again (git log -p {source}), "
            f"change the translation, then run: python docs/translations.py --accept {page}"
        )
    theirs, ours = parts(english), parts(chinese)
    for name, expected in theirs.items():
        if (got := ours[name]) != expected:
            lacking, surplus = list((expected - got).elements()), list((got - expected).elements())
            found.append(f"{page}: {name} differ from those of {source}: lacking {lacking}, surplus {surplus}")
    if broken := [child for block in _parse(chinese) for child in block.children or () if child.type == "softbreak"]:
        found.append(f"{page}: {len(broken)} line breaks within paragraphs; browsers make them spaces: join the lines")
    for target in targets(chinese):
        if not (path.parent / target).exists() and Path(target).stem not in GENERATED:
            found.append(f"{page}: there is no {target}, where a link leads")
    return found


def unlisted(folder: Path = ROOT / "docs") -> list[str]:
    """Pages of which nobody has said whether they are to be translated, and listed ones that are gone."""
    found = [path.relative_to(folder) for path in folder.rglob("*.md")]
    names = {path.with_suffix("").as_posix() for path in found if path.parts[0] != "_build"}
    chinese = {name.removeprefix("zh-CN/") for name in names if name.startswith("zh-CN/")}
    there = {name for name in names if not name.startswith("zh-CN/")} | {*GENERATED}
    listed = {*TRANSLATED, *GENERATED, *ENGLISH_ONLY}
    return [
        *(f"docs/{name}.md: add {name!r} to TRANSLATED or ENGLISH_ONLY" for name in sorted(there - listed)),
        *(f"docs/{name}.md is gone: take {name!r} out of docs/translations.py" for name in sorted(listed - there)),
        *(
            f"docs/zh-CN/{name}.md: add {name!r} to TRANSLATED in docs/translations.py"
            for name in sorted(chinese - {*TRANSLATED, *GENERATED})
        ),
    ]


def parts(text: str) -> dict[str, Counter[str]]:
    """What a page and its translation have in common.

    Comments at the end of a line of code may be translated. Code spans and numbers count once however often they
    are there, since sentences are built otherwise; numbers are taken from the English page's digits alone.
    """
    blocks = _parse(text)
    spans = [child for block in blocks for child in (block, *(block.children or ()))]
    code = [b for b in blocks if b.type in ("fence", "code_block") and not b.info.startswith("{")]
    words = " ".join(child.content for child in spans if child.type == "text")
    return {
        "headings": Counter(f"{n}. {block.tag}" for n, block in enumerate(_of(blocks, "heading_open"), 1)),
        "rows of tables": Counter(block.type for block in _of(blocks, "tr_open")),
        "items of lists": Counter(block.type for block in _of(blocks, "list_item_open")),
        "blocks of code": Counter(f"{n}. {b.info}\n{_bare(b.content)}" for n, b in enumerate(code, 1)),
        "names in backquotes": Counter(
            {s.content for b, s in pairwise(spans) if s.type == "code_inline" and not _role(b)}
        ),
        "numbers": Counter(set(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", words))),
        "pictures": Counter(Path(str(child.attrs["src"])).name for child in _of(spans, "image")),
    }


def targets(text: str) -> list[str]:
    """The files that links and pictures of a page lead to."""
    spans = [child for block in _parse(text) for child in block.children or ()]
    found = [str(child.attrs.get("href", child.attrs.get("src", ""))) for child in spans]
    return [target.partition("#")[0] for target in found if target and not re.match(r"\w+:|#", target)]


def accept(page: str, root: Path = ROOT) -> None:
    """Keep the digest of the English page as it is now."""
    path = root / page
    mark = f"<!-- source: {digest((root / PAGES[page]).read_text(encoding='utf-8'))} -->"
    text = SOURCE.sub("", path.read_text(encoding="utf-8")).rstrip()
    path.write_text(f"{text}\n\n{mark}\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Say what is wrong; 1 where anything is."""
    parser = argparse.ArgumentParser(description="Chinese pages against their English ones.")
    parser.add_argument("--accept", nargs="+", default=[], metavar="PAGE", help="such as docs/zh-CN/preflight.md")
    for given in parser.parse_args(arguments).accept:
        page = Path(given).resolve().relative_to(ROOT).as_posix() if Path(given).exists() else given
        if page not in PAGES:
            parser.error(f"expected one of {', '.join(PAGES)}; got {given}")
        accept(page)
    found = [*unlisted(), *(fault for page in PAGES for fault in faults(page))]
    print(*found or ["Every Chinese page is up to date."], sep="\n")
    return bool(found)


def _parse(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def _of(tokens: list[Token], kind: str) -> list[Token]:
    return [token for token in tokens if token.type == kind]


def _role(before: Token) -> bool:
    return before.type == "text" and before.content.endswith("}")  # {download}`text <file>` is a link


def _bare(code: str) -> str:
    return re.sub(r"[ \t]+#[ ].*", "", code)


if __name__ == "__main__":
    sys.exit(main())

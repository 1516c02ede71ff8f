"""The Chinese pages have all that the English ones have, and are told to be looked at again when those change."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lossdoctor.messages import text
from lossdoctor.rules import RULES

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "translations.py"
spec = importlib.util.spec_from_file_location("translations", FILE)
assert spec is not None
assert spec.loader is not None
translations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(translations)

ENGLISH = """# Ways

Two ways, 0.5 and 1,797, of `zero_grad`. See [traps](traps.md).

![both](images/curves.png)

* one
* two

| a | b |
|---|---|
| 1 | 2 |

```console
$ lossdoctor check runs/a  # what is wrong
```

    lossdoctor demo

## Limits

None.
"""
CHINESE = """# 方式

`zero_grad` 的两种方式，0.5 与 1,797。见[陷阱](traps.md)。

![两者](images/curves.png)

* 一
* 二

| a | b |
|---|---|
| 1 | 2 |

```console
$ lossdoctor check runs/a  # 哪里有问题
```

    lossdoctor demo

## 局限

没有。
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one page in two languages, and the Chinese one accepted."""
    (tmp_path / "images").mkdir()
    for name, content in (("ways.md", ENGLISH), ("zh.md", CHINESE), ("traps.md", ""), ("images/curves.png", "")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setitem(translations.PAGES, "zh.md", "ways.md")
    translations.accept("zh.md", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", sorted(translations.PAGES))
def test_page_is_complete_and_up_to_date(page: str) -> None:
    assert not translations.faults(page), "\n".join(translations.faults(page))


def test_every_page_is_translated_or_said_to_be_english_only() -> None:
    assert not translations.unlisted(), "\n".join(translations.unlisted())


def test_the_digest_is_that_of_the_file(small: Path) -> None:
    whole = hashlib.sha256((small / "ways.md").read_bytes()).hexdigest()
    assert (small / "zh.md").read_text(encoding="utf-8").endswith(f"<!-- source: {whole[:12]} -->\n")
    assert translations.faults("zh.md", small) == []


def test_a_changed_english_page_is_told_until_it_is_accepted(small: Path) -> None:
    (small / "ways.md").write_text(ENGLISH.replace("None.", "Some."), encoding="utf-8")
    (told,) = translations.faults("zh.md", small)
    assert "ways.md has changed since zh.md was translated" in told
    assert "python docs/translations.py --accept zh.md" in told
    translations.accept("zh.md", small)
    assert translations.faults("zh.md", small) == []
    assert (small / "zh.md").read_text(encoding="utf-8").count("<!-- source:") == 1


def test_a_page_that_was_never_accepted_or_is_missing_is_told(small: Path) -> None:
    (small / "zh.md").write_text(CHINESE, encoding="utf-8")
    (told,) = translations.faults("zh.md", small)
    assert "--accept zh.md" in told
    (small / "zh.md").unlink()
    (told,) = translations.faults("zh.md", small)
    assert "zh.md is missing: translate ways.md" in told


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("## 局限\n", "", "headings"),
        ("## 局限", "### 局限", "headings"),
        ("| 1 | 2 |\n", "", "rows of tables"),
        ("* 二\n", "", "items of lists"),
        ("check runs/a", "check runs/b", "blocks of code"),
        ("```console\n", "```\n", "blocks of code"),
        ("    lossdoctor demo", "    lossdoctor report", "blocks of code"),
        ("`zero_grad`", "`zero_gradient`", "names in backquotes"),
        ("1,797", "1,979", "numbers"),
        ("images/curves.png", "images/samples.png", "pictures"),
        ("traps.md", "trap.md", "there is no trap.md"),
        ("见[", "\n见[", "line breaks within paragraphs"),
    ],
)
def test_what_is_lost_or_altered_is_named(small: Path, old: str, new: str, names: str) -> None:
    page = small / "zh.md"
    before = page.read_text(encoding="utf-8")
    assert old in before
    page.write_text(before.replace(old, new), encoding="utf-8")
    told = "\n".join(translations.faults("zh.md", small))
    assert names in told
    assert "has changed" not in told


def test_pages_nobody_listed_are_told(tmp_path: Path) -> None:
    for folder in ("symptoms", "zh-CN/symptoms"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("new.md", "zh-CN/own.md", "symptoms/new.md", "zh-CN/symptoms/own.md"):
        (tmp_path / name).touch()
    told = "\n".join(translations.unlisted(tmp_path))
    assert "docs/new.md: add 'new' to TRANSLATED or ENGLISH_ONLY" in told
    assert "docs/zh-CN/own.md: add 'own' to TRANSLATED" in told
    assert "docs/symptoms/new.md: add 'symptoms/new' to TRANSLATED or ENGLISH_ONLY" in told
    assert "docs/zh-CN/symptoms/own.md: add 'symptoms/own' to TRANSLATED" in told
    assert "docs/preflight.md is gone" in told
    assert "docs/symptoms/nan.md is gone" in told


def test_the_command_refuses_other_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        translations.main(["--accept", "docs/preflight.md"])
    assert "expected one of README.zh-CN.md" in capsys.readouterr().err


def test_the_readmes_link_each_other() -> None:
    for page, other in (("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")):
        top = (ROOT / page).read_text(encoding="utf-8").split("\n\n")[1]
        assert translations.targets(top) == [other]


class Page(HTMLParser):
    """Language, links, those in the article, and text outside of code of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lang, self.links, self.inner, self.text, self._code = "", set[str](), set[str](), "", 0
        self._article = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.lang = given["lang"] or "" if tag == "html" else self.lang
        self._article |= tag == "article"
        self.links |= {given.get("href") or ""}
        self.inner |= {given.get("href") or ""} if self._article else set()
        self._code += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._article &= tag != "article"
        self._code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "sphinx", "--fail-on-warning", "-q", "-b", "html")
    ran = subprocess.run([*command, "-d", out / "trees", ROOT / "docs", out], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return out


def test_the_built_pages_link_each_other_and_say_their_language(site: Path) -> None:
    names = (*translations.TRANSLATED, *translations.GENERATED)
    for name in names:
        english, chinese = Page(site / f"{name}.html"), Page(site / "zh-CN" / f"{name}.html")
        top = "../" * name.count("/")
        assert (english.lang, chinese.lang) == ("en", "zh-CN")
        assert english.inner & {f"{top}zh-CN/{other}.html" for other in names} == {f"{top}zh-CN/{name}.html"}
        assert chinese.links & {f"{top}../{other}.html" for other in names} == {f"{top}../{name}.html"}
        assert not re.search(r"\*\*|\]\(", chinese.text), f"{name}: markup that was not understood"


def test_the_chinese_index_lists_what_is_in_english_only(site: Path) -> None:
    assert {f"../{name}.html" for name in translations.ENGLISH_ONLY} <= Page(site / "zh-CN" / "index.html").links


def test_the_chinese_rules_are_those_of_the_catalogue(site: Path) -> None:
    shown = Page(site / "zh-CN" / "rules.html").text
    for rule in RULES:
        first = text(f"rule.{rule.code}.page", "zh-CN").partition("\n")[0]
        assert re.sub(r"`[^`]*`", "", first) in shown, rule.code

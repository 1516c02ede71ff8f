from __future__ import annotations

import ast
import json
import string
from pathlib import Path

import pytest

import lossdoctor
from lossdoctor import messages
from lossdoctor.errors import UsageError
from lossdoctor.messages import default_language, languages, text

ROOT = Path(lossdoctor.__file__).parent
FILES = {
    lang: {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "messages" / lang).iterdir()}
    for lang in languages()
}
CATALOGUES = {lang: {key: m for file in files.values() for key, m in file.items()} for lang, files in FILES.items()}
KEYS = sorted(CATALOGUES["en"])


def placeholders(message: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(message) if name is not None)


def spoken() -> set[str]:
    """Literal keys the program asks for: the first argument of every call of `text` and `say`."""
    asked = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="text" | "say"), args=[ast.Constant(value=key), *_]):
                    asked.add(key)
    return asked


def test_there_is_a_catalogue_for_every_language_and_no_other() -> None:
    folders = {path.name for path in (ROOT / "messages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(languages())


def shared(file: dict[str, str]) -> list[str]:
    """Without the pages of rules: in English they are docstrings."""
    return [key for key in file if not key.endswith(".page")]


@pytest.mark.parametrize("lang", languages())
def test_no_key_is_given_twice(lang: str) -> None:
    assert sum(len(file) for file in FILES[lang].values()) == len(CATALOGUES[lang])


@pytest.mark.parametrize("lang", languages())
def test_languages_say_the_same_things(lang: str) -> None:
    assert sorted(FILES[lang]) == sorted(FILES["en"])
    for name, file in FILES[lang].items():
        assert shared(file) == list(FILES["en"][name]), f"{name}: same order, so that a difference is easy to see"


@pytest.mark.parametrize("key", KEYS)
def test_placeholders_agree_and_texts_are_tidy(key: str) -> None:
    for lang in languages():
        message = CATALOGUES[lang][key]
        assert placeholders(message) == placeholders(CATALOGUES["en"][key])
        assert message
        assert message == message.strip()


def test_chinese_is_chinese() -> None:
    assert all(any("\u4e00" <= c <= "\u9fff" for c in message) for message in CATALOGUES["zh-CN"].values())
    assert all(message.isascii() for message in CATALOGUES["en"].values()), "English must survive an ASCII terminal"


def test_everything_said_is_in_the_catalogue() -> None:
    assert spoken() <= set(KEYS)


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="zh-CN"):
        text("metric.flow/cos", "fr")
    with pytest.raises(KeyError, match="no message 'nothing'"):
        text("nothing")
    monkeypatch.setitem(messages._catalogue("en"), "greeting", "Hello {name}")
    with pytest.raises(KeyError, match="name"):
        text("greeting", nme="x")
    assert text("greeting", name="you") == "Hello you"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh-CN"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh-CN"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh-CN"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_locale_decides(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_language() == expected

"""What the server answers, to pages of its own and to those who should get nothing."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from lossdoctor.live import app
from lossdoctor.live.app import SCRIPTS, application
from lossdoctor.live.folder import Runs
from lossdoctor.live.guard import LOOPBACK, POLICY
from lossdoctor.live.hub import Hub
from lossdoctor.live.pages import COMPARED
from lossdoctor.store import RunWriter

NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script>", "a\x00b\ud800", "${x}"]
TOO_MANY = "&".join(f"run={i}" for i in range(COMPARED + 1))
TOKEN = "the right token"


def client(folder: Path, *, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    app = application(Hub(Runs(folder)), str(folder), lang="en", hosts=LOOPBACK, token=token, cookie="lossdoctor-1")
    return TestClient(app, base_url=f"http://{host}:7007", follow_redirects=False, raise_server_exceptions=True)


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.scripts += tag == "script" and not any(name == "src" for name, _ in attrs)
        if tag not in ("meta", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "path",
    ["/", *(f"/run?{urlencode({'run': name}, errors='replace')}" for name in NASTY), "/compare?run=a&run=%3Cb%3E"],
)
@pytest.mark.parametrize("lang", ["en", "zh-CN"])
def test_pages_are_whole_and_load_nothing_from_elsewhere(tmp_path: Path, path: str, lang: str) -> None:
    answer = client(tmp_path).get(path + ("&" if "?" in path else "?") + f"lang={lang}")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    tags = Tags()
    tags.feed(answer.text)
    assert tags.open == []
    assert tags.handlers == []
    assert tags.scripts == 1, "the data alone"
    assert all(re.match(r"#|\./|assets/|compare|data:,$", load) for load in tags.loads), tags.loads
    assert "<img" not in answer.text
    assert f'data-lang="{lang}"' in answer.text


def test_every_script_is_served() -> None:
    assert {path.stem for path in (Path(app.__file__).parent / "script").glob("*")} == set(SCRIPTS)


def test_every_asset_is_there_and_nothing_else(tmp_path: Path) -> None:
    one = client(tmp_path)
    for path in re.findall(r'(?:src|href)="(assets/[^"]+)"', one.get("/").text):
        answer = one.get(f"/{path}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/")
        assert "immutable" in answer.headers["cache-control"]
        assert "://" not in re.sub(r"https?://(www\.w3\.org|github\.com)[^\s'\"]*", "", answer.text)
    for name in ("live.py", "..%2Fapp.py", "../app.py", "%2e%2e/hub.py", ""):
        assert one.get(f"/assets/{name}").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/run", "/run?run=", "/compare", f"/compare?{TOO_MANY}", f"/stream?{TOO_MANY}"],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, path: str) -> None:
    assert client(tmp_path).get(path).status_code == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_is_only_read(tmp_path: Path, method: str) -> None:
    for path in ("/", "/run?run=a", "/stream", "/curves"):
        assert client(tmp_path).request(method, path).status_code == 405


def test_a_page_on_no_run_makes_no_work(tmp_path: Path) -> None:
    RunWriter(tmp_path / "a").close()
    hub = Hub(Runs(tmp_path))
    app = application(hub, str(tmp_path), lang="en", hosts=LOOPBACK, token=None, cookie="lossdoctor-1")
    with TestClient(app, base_url="http://127.0.0.1:7007") as one:
        for name in ("nobody", "../a", ""):
            one.get("/run", params={"run": name})
        assert hub._channels == {}
        assert one.get("/run?run=a").status_code == 200
        assert set(hub._channels) == {"a"}, "what the page will ask for is made already"


def test_a_question_about_the_stream_alone_ends(tmp_path: Path) -> None:
    assert client(tmp_path).head("/stream").status_code == 200


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("localhost:7007", True),
        ("LOCALHOST.:9999", True),  # another port: the end of a tunnel
        ("127.0.0.1", True),
        ("[::1]:7007", True),
        ("192.168.1.7:7007", True),  # an address cannot be bent to lead here
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:7007", False),
        ("evil.example:7007@localhost", False),
        ("", False),
        ("[::1", True),
        ("[evil.example]", False),
    ],
)
def test_only_names_it_knows_are_answered(tmp_path: Path, host: str, let_in: bool) -> None:
    for path in ("/", "/stream?run=a&run=b&run=c&run=d&run=e&run=f&run=g", "/assets/live.js"):
        answer = client(tmp_path).get(path, headers={"host": host})
        assert (answer.status_code == 421) is not let_in
        if not let_in:
            assert "--allow-host" in answer.text
            assert answer.headers["content-security-policy"] == POLICY


def test_without_the_token_there_is_nothing(tmp_path: Path) -> None:
    RunWriter(tmp_path / "secret-run").close()
    for given in (
        {},
        {"token": ""},
        {"token": "wrong"},
        {"token": TOKEN[:-1]},
        {"token": TOKEN + "x"},
        {"token": "é\ud800"},
    ):
        for path in ("/", "/run?run=secret-run", "/stream", "/assets/live.js"):
            query = urlencode(given, errors="surrogatepass")
            answer = client(tmp_path, token=TOKEN).get(path + ("&" if "?" in path else "?") + query)
            assert answer.status_code == 403
            assert "secret" not in answer.text
    for cookie in ("lossdoctor-1=wrong", "lossdoctor-1=", "other=x", 'lossdoctor-1="', "\xff=\xff"):
        answer = client(tmp_path, token=TOKEN).get("/", headers={"cookie": cookie.encode("latin-1")})
        assert answer.status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(tmp_path: Path) -> None:
    one = client(tmp_path, token="right")
    answer = one.get("/run?run=a%20b&token=right")
    assert answer.status_code == 303
    assert answer.headers["location"] == "./run?run=a+b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "right" not in answer.headers["location"]
    assert one.get("/").status_code == 200, "the cookie is carried"
    assert one.get("/?token=wrong").status_code == 403, "a wrong token is told, whatever the cookie"
    elsewhere = client(tmp_path, token="right").get("//evil.example/?token=right")
    assert elsewhere.headers["location"] == "./"

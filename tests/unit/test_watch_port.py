"""The port answers whoever asks properly, whatever others do to it; and health is judged by what is on the board."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import ExitStack

import pytest

from tests.fix_master import until
from wqcore import clock
from wqcore.proc.board import DRAINING, WORKING, Board
from wqcore.settings import Process
from wqcore.watch import page as layout
from wqcore.watch import port as port_module
from wqcore.watch.health import Check, Health
from wqcore.watch.page import Page
from wqcore.watch.port import CONNECTIONS_MAX, HEAD_BYTES_MAX, Answer, Port, problem
from wqcore.watch.station import told

BIG = b"x" * 4_000_000


def broken(accept: str) -> Answer:
    raise ValueError("no")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port that answers /hello, /big and, with an error, /broken; its time limit is a second."""
    monkeypatch.setattr(port_module, "LIMIT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    pages = {"/hello": lambda accept: Answer(200, f"hello {accept}".encode()), "/big": lambda _: Answer(200, BIG)}
    Port("127.0.0.1", number, pages | {"/broken": broken}).start()
    until(lambda: problem("127.0.0.1", number), "it listens")
    return number


def ask(port: int, request: bytes) -> bytes:
    """What comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
        conn.sendall(request)
        return rest(conn)


def rest(conn: socket.socket) -> bytes:
    found = b""
    try:
        while data := conn.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def test_get_and_head_are_answered_and_nothing_else(port: int) -> None:
    found = ask(port, b"GET /hello?a=b HTTP/1.1\r\nhost: x\r\naCCept: text/x\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert found.endswith(b"\r\n\r\nhello text/x")
    head = ask(port, b"HEAD /hello HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 6\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get"):
        refused = ask(port, method + b" /hello HTTP/1.1\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET, HEAD\r\n" in refused
    assert ask(port, b"GET /nothing HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert ask(port, b"GET /broken HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 500 ")
    for junk in (b"\r\n\r\n", b"GET /hello\r\n\r\n", b"GET  /hello HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\r\n\r\n"):
        assert ask(port, junk).startswith(b"HTTP/1.1 400 "), junk


def test_a_request_that_never_ends_is_refused_once_it_is_too_large(port: int) -> None:
    assert ask(port, b"GET /hello HTTP/1.1\r\nx: " + b"y" * 2 * HEAD_BYTES_MAX).startswith(b"HTTP/1.1 431 ")


def test_a_client_that_says_nothing_or_reads_nothing_is_dropped_in_time(port: int) -> None:
    with ExitStack() as stack:
        silent, slow, deaf = (stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(3))
        slow.sendall(b"GET /hello HTTP/1.1\r\n")
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        assert rest(silent) == b""
        assert rest(slow) == b""
        assert time.monotonic() - began >= 0.5, "they had their time"
        until(lambda: reset(deaf), "the deaf one is dropped, too")


def reset(conn: socket.socket) -> bool:
    """Whether the other side has thrown the connection away."""
    return bool(conn.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)


def test_clients_that_say_nothing_keep_no_probe_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_module, "LIMIT_S", 60.0)  # nobody goes for being slow
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(3 * CONNECTIONS_MAX)
        ]
        assert ask(port, b"GET /hello HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert rest(silent[0]) == b"", "the oldest had to go"


def test_an_address_that_cannot_be_listened_on_is_a_sentence_that_names_the_options(port: int) -> None:
    for host in ("127.0.0.1", "203.0.113.7", "no such host.invalid"):
        found = problem(host, port)
        assert found is not None
        assert found.startswith(f"watch.port = {port}: cannot listen on {host}:{port} (")
        assert "watch.host" in found
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    assert problem("127.0.0.1", number) is None


class Ward:
    """A master of one place, as it stands on board and page; all is well with it."""

    def __init__(self) -> None:
        self.board = Board([1, 1, 0, 0])
        self.page = Page(queues=["q"], places=["q/0"], kinds=[], segments=4)
        self.worker, self.keeper = self.board.sheets[0], self.board.sheets[2]
        self.beat_at = clock.monotonic()
        self.version: int | None = 3
        self.board.tick(clock.monotonic_ns())
        self.keeper.assign(0, clock.monotonic_ns())
        self.join(0, age_s=60)
        self.health = Health(
            Process(), self.board, self.page, self.keeper,
            beat_at=lambda: self.beat_at, versions=lambda: (self.version, 3),
        )  # fmt: skip

    def join(self, number: int, *, age_s: float = 0.0) -> None:
        """A worker of the place starts on a sheet."""
        sheet, header = self.board.sheets[number], self.page.segments[number].header
        sheet.assign(7 + number, clock.monotonic_ns())
        sheet.set_state(WORKING)
        header[layout.PLACE], header[layout.PROVED] = 1, clock.monotonic_ns()
        header[layout.STARTED] = clock.monotonic_ns() - int(age_s * 1e9)

    def wrong(self) -> dict[str, str]:
        return {check.name: check.problem for check in self.health.ready() if check.problem}

    def lives(self) -> bool:
        return not any(check.problem for check in self.health.live())


def ago(seconds: float) -> int:
    return clock.monotonic_ns() - int(seconds * 1e9)


def test_a_master_with_which_all_is_well_is_ready() -> None:
    ward = Ward()
    assert ward.wrong() == {}
    assert ward.lives()


def test_only_a_schema_that_is_older_than_the_program_is_a_reason() -> None:
    ward = Ward()
    for version, words in ((None, None), (4, None), (2, "the schema is at version 2, but this program needs 3")):
        ward.version = version
        assert (ward.wrong().get("schema") or "").startswith(words or "")
        assert ward.lives()


def test_what_a_worker_lacks_is_said_of_its_place_and_ends_nobody() -> None:
    ward = Ward()
    header = ward.page.segments[0].header
    for change, words in (
        (lambda: ward.worker.set_state(DRAINING), "it drains"),
        (lambda: ward.worker.tick(ago(4)), "its event loop has not turned for 4.0 s"),
        (lambda: header.__setitem__(layout.PROVED, 0), "it has no lease"),
        (lambda: header.__setitem__(layout.PROVED, ago(7.2)), "its lease was last proved 7.2 s ago"),
        (lambda: ward.worker.set_state(0), "there is no worker"),
    ):
        ward.join(0, age_s=60)
        assert ward.wrong() == {}
        change()
        assert list(ward.wrong()) == ["worker q/0"]
        assert words in ward.wrong()["worker q/0"]
        assert ward.lives()
    ward.join(1)
    assert ward.wrong() == {}, "one that is well is enough for a place"


def test_a_place_whose_workers_die_young_is_trusted_when_one_has_grown_older() -> None:
    ward = Ward()
    ward.page.dies_young("q/0", 3)
    assert ward.wrong() == {}
    ward.join(0, age_s=1)
    assert ward.wrong() == {"worker q/0": "it has just started; the last 3 died soon after their start"}
    ward.page.dies_young("q/0", 2)
    assert ward.wrong() == {}


def test_a_drain_and_a_silent_database_are_reasons_not_to_be_ready_and_a_silent_keeper_one_not_to_live() -> None:
    ward = Ward()
    ward.beat_at = clock.monotonic() - 4
    ward.page.drains()
    assert set(ward.wrong()) == {"draining", "database"}
    assert ward.lives()
    ward.keeper.tick(ago(5))
    assert "keeper" in ward.wrong()
    assert not ward.lives()


def test_the_answer_says_what_is_wrong_as_text_and_as_json() -> None:
    checks = [Check("a", None), Check("b", "it is bad")]
    text, found = told("ready", checks, "*/*"), told("ready", checks, "application/json")
    assert text == Answer(503, b"not ready\n[+] a: ok\n[-] b: it is bad\n")
    assert (found.status, found.content_type) == (503, "application/json")
    assert b'{"name":"b","ok":false,"problem":"it is bad"}' in found.body
    assert told("live", checks[:1], "").status == 200

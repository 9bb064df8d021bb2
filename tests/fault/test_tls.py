"""TLS to PostgreSQL with `sslmode=verify-full`: the right authority and name connect, everything else is refused.

PostgreSQL's wheel is built without TLS. So one side is a terminator: it speaks PostgreSQL's request for TLS, has the
certificate, and passes what it deciphers on to the server's socket, as a proxy in front of a database does. The other
is Debian's server with `ssl = on`, where it is installed. The side that verifies is libpq in both.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.fix_master import World, ready, until
from wqcore import DatabaseUnavailable, SyncClient, load

x509 = pytest.importorskip("cryptography.x509", reason="TLS IS NOT TESTED: there is no package `cryptography`")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
PASSWORD = "c4nary-pass word"
DEBIAN = Path("/usr/lib/postgresql/15/bin")


class Signed(NamedTuple):
    """A certificate and its key, as files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority that nobody else knows."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = folder / f"{name}.pem"
        cert = self._build(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.root.write_bytes(cert.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, host: str) -> Signed:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        cert = self._build(subject, key).add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        found = Signed(self._folder / f"{host}.crt", self._folder / f"{host}.key")
        found.cert.write_bytes(cert.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        found.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        found.key.chmod(0o600)
        return found

    def _build(self, subject: Any, key: Any) -> Any:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        )  # fmt: skip


class Terminator:
    """Listens on loopback, deciphers, and passes on to PostgreSQL's socket; without a certificate it refuses TLS."""

    def __init__(self, target: str, signed: Signed | None) -> None:
        self.ciphered = self.plain = 0
        self._target, self._context = target, None
        if signed is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(signed.cert, signed.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        self._loop.set_exception_handler(lambda loop, context: None)  # clients that hang up are the point of some tests
        self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            try:
                while (request := struct.unpack("!II", await reader.readexactly(8))) != (8, SSL_REQUEST):
                    if request != (8, GSS_REQUEST):
                        self.plain += 1
                        return
                    writer.write(b"N")
                if self._context is None:
                    writer.write(b"N")
                    if await reader.read(1):
                        self.plain += 1
                    return
                writer.write(b"S")
                await writer.start_tls(self._context)
                self.ciphered += 1
                await self._pass_on(reader, writer)
            finally:
                writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(self._target)
        try:
            done = {asyncio.ensure_future(_pump(reader, there[1])), asyncio.ensure_future(_pump(there[0], writer))}
            _, left = await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            for pump in left:
                pump.cancel()
        finally:
            there[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextmanager
def terminator(dsn: str, signed: Signed | None) -> Iterator[Terminator]:
    parts = conninfo_to_dict(dsn)
    found = Terminator(f"{parts['host']}/.s.PGSQL.{parts.get('port') or 5432}", signed)
    try:
        yield found
    finally:
        found.stop()


def over(dsn: str, port: int, root: Path, **changed: Any) -> str:
    """The DSN over TCP, with a password in it and everything verified."""
    given: dict[str, Any] = {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": port, "sslmode": "verify-full", "sslrootcert": str(root),
        "password": PASSWORD, "dbname": conninfo_to_dict(dsn)["dbname"], "user": "postgres",
    }  # fmt: skip
    return make_conninfo("", **(given | changed))


@contextmanager
def debian(folder: Path, signed: Signed) -> Iterator[int]:
    """Debian's PostgreSQL with TLS and passwords on a port of loopback, and nothing else; the port."""
    if not (DEBIAN / "initdb").exists():
        pytest.skip(f"TLS OF POSTGRESQL ITSELF IS NOT TESTED: there is no {DEBIAN}; install postgresql-15")
    folder.chmod(0o755)
    data = folder / "d"
    data.mkdir(mode=0o700)
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(data, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60)

    (folder / "password").write_text(PASSWORD)
    initdb = [str(DEBIAN / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C", "-N"]
    run(*initdb, "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
    for name, source in (("server.crt", signed.cert), ("server.key", signed.key)):
        shutil.copy(source, data / name)
        (data / name).chmod(0o600)
        if as_user:
            shutil.chown(data / name, "postgres")
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    options = f"-k {data} -p {port} -c listen_addresses=127.0.0.1 -c ssl=on -c fsync=off"
    run(str(DEBIAN / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log"), "-o", options, "start")
    try:
        yield port
    finally:
        run(str(DEBIAN / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def one_job_goes_all_the_way(world: World, dsn: str) -> None:
    """A client inserts, the notification wakes the worker long before its next look, and the job completes."""
    config = world.configure(
        database={"dsn": dsn}, process={"dead_after_s": 3600.0}, queues__default={"poll_interval_s": 1200.0}
    )
    world.start(config)
    ready(world)
    inserted = world.cli(config, "insert", "nap", "{}")
    assert inserted.returncode == 0, inserted.stderr
    until(lambda: world.outcomes() == {"completed": 1}, "the notification arrives over TLS")
    assert PASSWORD not in world.log() + inserted.stdout + inserted.stderr


def test_workers_clients_and_notifications_go_through_tls(world: World, authority: Authority) -> None:
    with terminator(world.dsn, authority.sign("localhost")) as proxy:
        one_job_goes_all_the_way(world, over(world.dsn, proxy.port, authority.root))
        connections = world.scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'wqcore%%'"
        )
        assert proxy.ciphered >= connections >= 2  # a shard and the keeper at least
        assert proxy.plain == 0
        world.stop()


def test_postgresqls_own_tls_is_used_by_every_connection(world: World, authority: Authority) -> None:
    folder = Path(tempfile.mkdtemp(prefix="wqtls", dir="/tmp"))
    try:
        with debian(folder, authority.sign("localhost")) as port:
            dsn = over(world.dsn, port, authority.root, dbname="postgres")
            world.conn.close()
            world.conn = psycopg.connect(dsn, autocommit=True)
            one_job_goes_all_the_way(world, dsn)
            ways = world.conn.execute(
                "select application_name, ssl, version from pg_stat_activity join pg_stat_ssl using (pid) "
                "where application_name like 'wqcore%'"
            ).fetchall()
            assert len(ways) >= 2
            assert [way for way in ways if not way[1]] == []
            world.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("host", "authority_of_client", "words"),
    [
        ("localhost", "others", "certificate verify failed"),
        ("db.example", "ours", r'server certificate for "db\.example".*does not match host name "localhost"'),
        (None, "ours", "server does not support SSL"),
    ],
    ids=["another authority", "another host name", "a server that answers without TLS"],
)
def test_a_server_that_cannot_prove_who_it_is_is_refused_before_the_password_is_sent(
    world: World, authority: Authority, host: str | None, authority_of_client: str, words: str
) -> None:
    Authority(world.folder, "others")
    with terminator(world.dsn, authority.sign(host) if host else None) as proxy:
        dsn = over(world.dsn, proxy.port, world.folder / f"{authority_of_client}.pem")
        config = world.configure(database={"dsn": dsn})
        shown = [world.cli(config, "status"), world.cli(config)]
        assert [ran.returncode for ran in shown] == [3, 3]
        said = [ran.stdout + ran.stderr for ran in shown]
        with pytest.raises(DatabaseUnavailable) as caught, SyncClient(load(config)):
            pass
        said.append(str(caught.value))
        for text in said:
            assert re.search(words, text), text
            assert "host=localhost" in text
            assert PASSWORD not in text
            assert "Traceback" not in text
        assert proxy.plain == 0

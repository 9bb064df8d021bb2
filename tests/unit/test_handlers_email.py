"""scheduleEmail against a real SMTP server: sent, refused for ever, refused for now, and no clear answer."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

import wqcore
from handlers.email import ScheduleEmail, schedule_email
from handlers.smtp import Connections, Smtp, bare_address
from tests.fix_job import app, make_job
from tests.fix_smtp import MailServer, mail_server

__all__ = ["app", "mail_server"]

ADA = "ada@good.example"


def mail(to: str = ADA, **more: str) -> ScheduleEmail:
    return ScheduleEmail(**{"to": to, "subject": "Hello", "html": "<p>Hello</p>", "text": "Hello"} | more)


async def test_a_mail_arrives_with_both_bodies_and_the_headers_that_identify_its_job(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    await schedule_email(mail("Ada Löv <ada@good.example>", subject="Grüße ✓", html="<p>ü</p>", text="ü"), make_job(41))
    [message] = mail_server.mails
    assert message["To"] == "Ada Löv <ada@good.example>"
    assert message["From"] == "Platform <platform@sender.example>"
    assert message["Subject"] == "Grüße ✓"
    assert message["X-Job-Id"] == "41"
    assert message["Message-ID"].startswith("<job-41.")
    assert message["Message-ID"].endswith("@sender.example>")
    assert message["Date"].datetime == make_job().created_at
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert (plain.get_content().strip(), html.get_content().strip()) == ("ü", "<p>ü</p>")


async def test_every_attempt_of_a_job_sends_the_same_message_id(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings())
    await schedule_email(mail(), make_job(1, attempt=1))
    await schedule_email(mail(), make_job(1, attempt=2))
    await schedule_email(mail(), make_job(2))
    first, second, other = (message["Message-ID"] for message in mail_server.mails)
    assert first == second != other


async def test_lines_of_any_length_arrive_unchanged(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings())
    text = "x" * 5_000 + "\n.\n" + "é" * 3_000 + "\n..dots\nFrom here"
    await schedule_email(mail(text=text, html=f"<p>{text}</p>"), make_job())
    body = mail_server.mails[0].get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n").rstrip("\n") == text


async def test_an_address_that_is_not_ascii_is_sent_to_a_server_that_takes_it(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    await schedule_email(mail("jürgen@bücher.example"), make_job())
    assert mail_server.mails[0]["To"] == "jürgen@bücher.example"


async def test_an_address_that_is_not_ascii_is_discarded_when_the_server_cannot_take_it(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    mail_server.offers_smtputf8 = False
    with pytest.raises(wqcore.Discard, match="SMTPUTF8"):
        await schedule_email(mail("jürgen@good.example"), make_job())


async def test_an_address_refused_for_ever_discards_the_job_with_the_servers_words(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    mail_server.refused_for_ever.add(ADA)
    with pytest.raises(wqcore.Discard, match=r"550 5\.1\.1 no such mailbox"):
        await schedule_email(mail(), make_job())
    assert mail_server.mails == []


async def test_an_address_refused_for_now_is_retried_by_policy_and_then_accepted(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    mail_server.refused_once.add(ADA)
    with pytest.raises(wqcore.Retry, match=r"450 4\.2\.0 greylisted") as raised:
        await schedule_email(mail(), make_job())
    assert raised.value.after_s is None
    await schedule_email(mail(), make_job(attempt=2))
    assert len(mail_server.mails) == 1


async def test_retry_after_s_replaces_the_policys_delay(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings(retry_after_s=1))
    mail_server.refused_once.add(ADA)
    with pytest.raises(wqcore.Retry) as raised:
        await schedule_email(mail(), make_job())
    assert raised.value.after_s == 1.0


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("552 5.3.4 too big", wqcore.Discard),
        ("554 5.7.1 spam", wqcore.Discard),
        ("451 4.3.0 disk full", wqcore.Retry),
        ("299 what", wqcore.Retry),
    ],
)
async def test_the_reply_to_the_content_decides(
    app: Any, mail_server: MailServer, reply: str, outcome: type[wqcore.Outcome]
) -> None:
    app(smtp=mail_server.settings())
    mail_server.reply_at_data = reply
    with pytest.raises(outcome, match=reply):
        await schedule_email(mail(), make_job())
    mail_server.reply_at_data = None
    await schedule_email(mail(), make_job())
    assert mail_server.connections == 1, "a refused mail does not cost its connection"


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
async def test_a_connection_closed_in_the_middle_is_retried_and_not_used_again(
    app: Any, mail_server: MailServer, stage: Any
) -> None:
    app(smtp=mail_server.settings())
    mail_server.breaks[stage] = 1
    with pytest.raises(wqcore.Retry, match="SMTPServerDisconnected"):
        await schedule_email(mail(), make_job())
    await schedule_email(mail(), make_job(attempt=2))
    assert (len(mail_server.mails), mail_server.connections) == (1, 2)


async def test_no_server_is_retried(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings(retry_after_s=2))
    await mail_server.stop()
    with pytest.raises(wqcore.Retry, match="SMTPConnectError") as raised:
        await schedule_email(mail(), make_job())
    assert raised.value.after_s == 2.0


async def test_a_server_that_says_nothing_is_retried(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings(timeout_s=0.2))
    mail_server.delay_s = 5.0
    with pytest.raises(wqcore.Retry, match="SMTPReadTimeoutError"):
        await schedule_email(mail(), make_job())
    mail_server.delay_s = 0.0
    await schedule_email(mail(), make_job(attempt=2))
    assert mail_server.connections == 2, "the reply to the first mail must not be taken for one to the second"


async def test_mails_one_after_the_other_share_a_connection(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings())
    for job_id in range(20):
        await schedule_email(mail(), make_job(job_id))
    assert (len(mail_server.mails), mail_server.connections) == (20, 1)


async def test_mails_at_the_same_time_share_the_connections_that_are_allowed(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings(connections_max=3))
    mail_server.delay_s = 0.01
    await asyncio.gather(*(schedule_email(mail(), make_job(job_id)) for job_id in range(30)))
    assert (len(mail_server.mails), mail_server.busiest) == (30, 3)
    assert mail_server.connections == 3


async def test_a_connection_that_the_server_closed_while_idle_is_replaced_without_a_retry(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings())
    await schedule_email(mail(), make_job(1))
    mail_server.close_connections()
    await schedule_email(mail(), make_job(2))
    assert (len(mail_server.mails), mail_server.connections) == (2, 2)


@pytest.mark.parametrize("how", ["421", "closed"])
async def test_a_reused_connection_that_ends_at_mail_is_replaced_without_a_retry(
    app: Any, mail_server: MailServer, how: str
) -> None:
    app(smtp=mail_server.settings())
    await schedule_email(mail(), make_job(1))
    if how == "421":
        mail_server.closing = 1
    else:
        mail_server.breaks["MAIL"] = 1
    await schedule_email(mail(), make_job(2))
    assert (len(mail_server.mails), mail_server.connections) == (2, 2)


async def test_a_new_connection_that_is_answered_with_421_is_retried(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings())
    mail_server.closing = 1
    with pytest.raises(wqcore.Retry, match="421"):
        await schedule_email(mail(), make_job())


async def test_a_mail_that_is_cancelled_gives_its_place_back_and_drops_its_connection(
    app: Any, mail_server: MailServer
) -> None:
    app(smtp=mail_server.settings(connections_max=1))
    mail_server.delay_s = 30.0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await schedule_email(mail(), make_job(1))
    mail_server.delay_s = 0.0
    await schedule_email(mail(), make_job(2))
    assert [message["X-Job-Id"] for message in mail_server.mails] == ["2"]
    assert mail_server.connections == 2


@pytest.mark.parametrize(
    "to",
    [
        "ada@good.example\r\nBcc: eve@evil.example",
        "ada@good.example\nBcc: eve@evil.example",
        "Ada\r <ada@good.example>",
        "ada@good.example> SIZE=1",
        "ada@good.example\u2028Bcc: eve@evil.example",
        "ada@good.example\x00",
        "ada@good.example, eve@evil.example",
        "friends: ada@good.example;",
        "ada\u00a0b@good.example",
        "ada",
        "@good.example",
        "",
        "(" * 900,
        "a" * 5_000 + "@good.example",
    ],
)
async def test_an_address_that_is_not_exactly_one_is_discarded_before_anything_is_sent(
    app: Any, mail_server: MailServer, to: str
) -> None:
    app(smtp=mail_server.settings())
    with pytest.raises(wqcore.Discard, match=r"^to: "):
        await schedule_email(mail(to), make_job())
    assert mail_server.mails == []


@pytest.mark.parametrize("subject", ["Hello\r\nBcc: eve@evil.example", "Hello\x00", "x" * 5_000])
async def test_a_subject_that_no_header_can_hold_is_discarded(app: Any, mail_server: MailServer, subject: str) -> None:
    app(smtp=mail_server.settings())
    with pytest.raises(wqcore.Discard, match=r"^subject: "):
        await schedule_email(mail(subject=subject), make_job())
    assert mail_server.mails == []


async def test_a_lone_surrogate_in_a_body_is_discarded(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings())
    with pytest.raises(wqcore.Discard, match="surrogates not allowed"):
        await schedule_email(mail(text="\ud800"), make_job())


@pytest.mark.parametrize("sender", ["nobody", "a@b.example\r\nBcc: eve@evil.example"])
async def test_a_sender_that_is_no_address_is_an_error_of_the_configuration(sender: str) -> None:
    with pytest.raises(wqcore.ConfigError, match=r"app\.smtp\.sender"):
        Connections(Smtp(sender=sender))


async def test_missing_settings_are_named(app: Any) -> None:
    app()
    with pytest.raises(wqcore.ConfigError, match=r"\[app\.smtp\].*sender"):
        await schedule_email(mail(), make_job())


def test_the_bare_address_is_what_the_name_is_written_for() -> None:
    assert bare_address('"Löv, Ada" <ada@good.example>') == "ada@good.example"
    assert bare_address('"a b"@good.example') == '"a b"@good.example'


def test_the_settings_do_not_show_their_password() -> None:
    assert "canary" not in repr(Smtp(sender=ADA, login="me", password="canary"))


async def test_the_worker_logs_in_once_a_connection(app: Any, mail_server: MailServer) -> None:
    mail_server.password = "pässword".encode()
    app(smtp=mail_server.settings(login="me", password="pässword"))
    await schedule_email(mail(), make_job(1))
    await schedule_email(mail(), make_job(2))
    assert mail_server.logins == [(b"me", "pässword".encode())]


async def test_a_wrong_password_is_permanent_and_does_not_show_it(app: Any, mail_server: MailServer) -> None:
    mail_server.password = b"right"
    app(smtp=mail_server.settings(login="me", password="canary"))
    with pytest.raises(wqcore.Discard, match="535") as raised:
        await schedule_email(mail(), make_job())
    assert "canary" not in str(raised.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 and the server's context with it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.parametrize("tls", ["tls", "starttls"])
async def test_a_mail_is_sent_over_tls_to_a_server_that_the_authority_vouches_for(
    app: Any, mail_server: MailServer, certificate: tuple[Path, ssl.SSLContext], tls: str
) -> None:
    cert, context = certificate
    await mail_server.stop()
    await mail_server.start(**{tls: context})
    app(smtp=mail_server.settings(tls=tls, ca_file=str(cert)))
    await schedule_email(mail(), make_job(1))
    await schedule_email(mail(), make_job(2))
    assert (len(mail_server.mails), mail_server.connections) == (2, 1)


@pytest.mark.parametrize("tls", ["tls", "starttls"])
async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    app: Any, mail_server: MailServer, certificate: tuple[Path, ssl.SSLContext], tls: str
) -> None:
    await mail_server.stop()
    await mail_server.start(**{tls: certificate[1]})
    app(smtp=mail_server.settings(tls=tls))
    with pytest.raises(wqcore.Retry, match="certificate verify failed"):
        await schedule_email(mail(), make_job())
    assert mail_server.mails == []


async def test_a_server_without_starttls_gets_nothing_in_the_clear(app: Any, mail_server: MailServer) -> None:
    app(smtp=mail_server.settings(tls="starttls", login="me", password="secret"))
    with pytest.raises(wqcore.Retry, match="STARTTLS"):
        await schedule_email(mail(), make_job())
    assert (mail_server.mails, mail_server.logins) == ([], [])

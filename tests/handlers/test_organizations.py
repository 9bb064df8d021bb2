"""A new organization gets a project with keys that work, and one welcome."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import wqcore
from handlers import ids, secrets
from handlers.organizations import OrganizationCreated, make_defaults, organization_created, welcome
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, app_tables, platform
from tests.fix_smtp import MailServer, mail_server
from wqcore.resource import use_app_settings

__all__ = ["empty_dsn", "mail_server", "pg", "platform"]


def found(platform: Platform, organization: str) -> list[tuple[Any, ...]]:
    """What the default project holds, production first."""
    return platform.sql(
        "select p.name, e.slug, e.type, e.api_key_hash, e.api_key_sealed from {s}.project p "
        "join {s}.environment e on e.project_id = p.id "
        "where p.organization_id = %s and e.organization_id = p.organization_id and p.slug = 'my-project' "
        "order by e.type desc",
        organization,
    )


async def test_an_organization_gets_a_project_with_two_environments_whose_keys_are_sealed(platform: Platform) -> None:
    await organization_created(OrganizationCreated(platform.organization), make_job())
    rows = found(platform, platform.organization)
    assert [row[:3] for row in rows] == [("My project", "prod", "PRODUCTION"), ("My project", "dev", "DEVELOPMENT")]
    for _, slug, _, hashed, sealed in rows:
        key = secrets.unseal(sealed)
        assert key.startswith(f"tr_{slug}_")
        assert hashed == secrets.api_key_hash(key)
        assert key.encode() not in sealed


async def test_it_is_welcomed_once_by_mail(platform: Platform, mail_server: MailServer) -> None:
    use_app_settings(app_tables(smtp=mail_server.settings()))
    for _ in range(2):
        await platform.client.insert(OrganizationCreated(platform.organization))
    await platform.drain()
    [mail] = mail_server.mails
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Acme is ready")
    assert platform.one("select welcomed_at is not null from {s}.organization")


async def test_a_repetition_changes_neither_keys_nor_mails(platform: Platform) -> None:
    await organization_created(OrganizationCreated(platform.organization), make_job())
    first = found(platform, platform.organization)
    await asyncio.gather(
        *(organization_created(OrganizationCreated(platform.organization), make_job()) for _ in range(4))
    )
    assert found(platform, platform.organization) == first
    assert len(platform.jobs("scheduleEmail")) == 1


async def test_many_at_once_make_one_project(platform: Platform) -> None:
    async def make() -> list[tuple[str, str, str]]:
        async with platform.store.transaction() as tx:
            return await make_defaults(tx, platform.organization)

    made = await asyncio.gather(*(make() for _ in range(6)))
    assert all(one == made[0] for one in made)
    assert [(slug, type_) for slug, type_, _ in made[0]] == [("prod", "PRODUCTION"), ("dev", "DEVELOPMENT")]


async def test_a_rollback_leaves_nothing(platform: Platform) -> None:
    with pytest.raises(ZeroDivisionError):
        async with platform.store.transaction() as tx:
            await make_defaults(tx, platform.organization)
            raise ZeroDivisionError
    assert found(platform, platform.organization) == []


async def test_an_environment_that_was_removed_stays_removed(platform: Platform) -> None:
    await organization_created(OrganizationCreated(platform.organization), make_job())
    platform.sql("delete from {s}.environment where slug = 'prod'")
    async with platform.store.transaction() as tx:
        assert [slug for slug, _, _ in await make_defaults(tx, platform.organization)] == ["dev"]


async def test_an_organization_without_an_address_is_welcomed_when_it_has_one(platform: Platform) -> None:
    organization = ids.new("org")
    platform.sql("insert into {s}.organization (id, title, slug) values (%s, 'Quiet', 'quiet')", organization)
    await organization_created(OrganizationCreated(organization), make_job())
    assert len(found(platform, organization)) == 2
    assert platform.jobs("scheduleEmail") == []
    platform.sql("update {s}.organization set email = 'q@example.com' where id = %s", organization)
    await organization_created(OrganizationCreated(organization), make_job())
    assert [mail["to"] for mail in platform.jobs("scheduleEmail")] == ["q@example.com"]


async def test_an_unknown_organization_is_a_permanent_failure(platform: Platform) -> None:
    with pytest.raises(wqcore.Discard, match="no organization org_gone"):
        await organization_created(OrganizationCreated("org_gone"), make_job())


async def test_a_title_cannot_break_the_mail(platform: Platform) -> None:
    mail = welcome("ada@example.com", "<b>Tom &\r\nBcc: eve@example.com</b>")
    assert mail.subject == "<b>Tom & Bcc: eve@example.com</b> is ready"
    assert "&lt;b&gt;Tom &amp; Bcc" in mail.html
    assert "<b>" not in mail.html

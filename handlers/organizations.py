"""What a new organization gets: a project that can be used at once, and one mail that says so.

organizationCreated is one transaction: a crash leaves nothing of it or all of it, the mail's job included. A repetition
finds the project and the time of the welcome, and changes neither.
"""

from __future__ import annotations

import html
from typing import Final

import msgspec

import wqcore
from handlers import ids, platform, secrets, store
from handlers.email import ScheduleEmail

PROJECT_NAME: Final = "My project"
PROJECT_SLUG: Final = "my-project"
ENVIRONMENTS: Final = (("prod", "PRODUCTION"), ("dev", "DEVELOPMENT"))


@wqcore.kind("organizationCreated", queue="internal-queue", priority=50, max_attempts=3, timeout_s=60)
class OrganizationCreated(msgspec.Struct, frozen=True, rename="camel"):
    """Makes a default project with its environments and keys, and sends a welcome.

    Attributes:
        id (str): the organization.
    """

    id: str


@wqcore.handler
async def organization_created(args: OrganizationCreated, job: wqcore.Job) -> None:
    """Makes the defaults, and enqueues the welcome once if the organization has an address.

    Raises wqcore.Discard: no such organization.
    """
    db = await store.open_store()
    async with db.transaction() as tx:
        organization = await tx.row("organization_to_welcome", id=args.id)
        if organization is None:
            raise wqcore.Discard(f"no organization {args.id}")
        await make_defaults(tx, args.id)
        if organization.email is not None and organization.welcomed_at is None:
            await tx.row("organization_welcomed", id=args.id)
            await tx.enqueue(welcome(organization.email, organization.title))


async def make_defaults(tx: store.Transaction, organization_id: str) -> list[tuple[str, str, str]]:
    """The environments (slug, type, API key) of the organization's default project, which is made if it is not there.

    A project that is there stays as it is, with its keys. The keys are in clear: show them, do not store them.
    """
    project_id = ids.new("proj")
    made = await tx.row(
        "insert_project", id=project_id, organization=organization_id, name=PROJECT_NAME, slug=PROJECT_SLUG
    )
    for slug, type_ in ENVIRONMENTS if made is not None else ():
        api_key = secrets.new_api_key(slug)
        await tx.row(
            "insert_environment",
            id=ids.new("env"),
            organization=organization_id,
            project=project_id,
            slug=slug,
            type=type_,
            hash=secrets.api_key_hash(api_key),
            sealed=secrets.seal(api_key),
        )
    found = await tx.rows("environments_of_project", organization=organization_id, slug=PROJECT_SLUG)
    return [(row.slug, row.type, secrets.unseal(row.api_key_sealed)) for row in found]


def welcome(email: str, title: str) -> ScheduleEmail:
    """The mail to a new organization. It holds no keys: mails are kept in clear on the way and in the mailbox."""
    title = " ".join(title.split())  # a subject is one line
    url = platform.settings().public_url
    lines = [
        f"Welcome! {title} is ready.",
        f'It has a project, "{PROJECT_NAME}", with a production and a development environment. Each has an API key.',
        f"Give the development key and {url} to the SDK in your project, and register your endpoint.",
    ]
    return ScheduleEmail(
        to=email,
        subject=f"{title} is ready",
        text="\n\n".join(lines) + "\n",
        html="".join(f"<p>{html.escape(line)}</p>" for line in lines),
    )

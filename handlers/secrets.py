"""Secrets are kept encrypted: what a table holds is of no use without the key of `[app.secrets]`.

Fernet (AES-128-CBC and HMAC-SHA256, https://github.com/fernet/spec). Several keys: the first encrypts, all decrypt, so
that a key can be replaced without a pause: put the new one first; what is old stays readable while its key is listed.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from typing import Annotated

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from msgspec import Meta

import wqcore

KEY_CHARS = string.ascii_letters + string.digits
KEY_LENGTH = 32


class Secrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.secrets]`.

    Attributes:
        keys (str): one or more keys, separated by commas, the newest first; each 32 bytes in URL-safe base 64, as
            `python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"` prints. Give it as
            `WQCORE_APP__SECRETS__KEYS`.
    """

    keys: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{43}=(,[A-Za-z0-9_-]{43}=)*$")]

    def __repr__(self) -> str:
        return "<Secrets>"


settings = wqcore.settings_for("secrets", Secrets)

_ciphers: dict[str, MultiFernet] = {}


def seal(text: str) -> bytes:
    """`text`, encrypted with the newest key."""
    return _cipher().encrypt(text.encode())


def unseal(sealed: bytes) -> str:
    """What `seal` was given. Raises wqcore.Discard when none of the keys fits."""
    try:
        return _cipher().decrypt(sealed).decode()
    except InvalidToken:
        raise wqcore.Discard(
            "a stored secret cannot be decrypted: the key that it was sealed with is not in app.secrets.keys"
        ) from None


def new_api_key(environment_slug: str) -> str:
    """A new key of an environment: `tr_<slug>_<32 letters and digits>`, 190 bits of chance."""
    return f"tr_{environment_slug}_" + "".join(secrets.choice(KEY_CHARS) for _ in range(KEY_LENGTH))


def api_key_hash(api_key: str) -> bytes:
    """What an API key is looked up by: SHA-256; the key has enough chance in it to need no salt."""
    return hashlib.sha256(api_key.encode()).digest()


def _cipher() -> MultiFernet:
    keys = settings().keys
    if keys not in _ciphers:
        _ciphers.clear()
        _ciphers[keys] = MultiFernet([Fernet(key) for key in keys.split(",")])
    return _ciphers[keys]

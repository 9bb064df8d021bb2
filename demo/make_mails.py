"""Writes mails.jsonl: the same 3,000 varied mails each time. Run as `python -m demo.make_mails`.

A line is what `wqcore insert --file` takes. All addresses are in domains that RFC 2606 keeps for examples, and each is
used once. The mail server of the demo refuses `…@refused.example` for ever and `…@greylisted.example` once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

PATH = Path(__file__).parent / "mails.jsonl"
MAILS, REFUSED, GREYLISTED = 3_000, 30, 90
SEED = 20_230_701

NAMES = [
    "Ada Lovelace",
    "Zoë Ångström",
    "José Núñez",
    "Łukasz Żółć",
    "Þóra Ægisdóttir",
    "Đorđe Šešelj",
    "Αθηνά Παππά",
    "Ольга Иванова",
    "Օվսաննա Պետրոսյան",
    "דוד כהן",
    "ليلى حسن",
    "आरती शर्मा",
    "สมชาย ใจดี",
    "王小明",
    "山田 花子",
    "김민준",
    "Nguyễn Thị Hương",
    "O'Brien, Siobhán",
    "Jean-Luc d’Œuvre",
    'Max "Mad" Muster',
    "Bo",
    "Anna-Lena von und zu Hohenstein-Wittgenstein",
]
DOMAINS = ["example.com", "example.net", "example.org", "mail.example", "post.example", "users.example"]
SUBJECTS = [
    "Welcome, {name}!",
    "Your invoice {number} is ready",
    "Deployment {number} finished ✅",
    "⚠️ Endpoint “shop-{number}” has not answered for 5 minutes",
    "Заказ № {number}: спасибо!",
    "ご注文 {number} を承りました",
    "تم استلام طلبك {number}",
    "Re: Fwd: Re: build #{number} – a subject that is much longer than one line of a header may be, so that it has to "
    "be folded, and that also holds ümlauts, “quotes”, and a 🎉",
    "{number}",
    "=?utf-8?q?not=20encoded?= but looks so",
]
SENTENCES = [
    "Your run completed in {number} ms.",
    "Bitte prüfen Sie die Größe der Anhänge: {number} kB.",
    "Le déploiement n’a pas abouti ; réessayez dans {number} s.",
    "Повторная попытка через {number} секунд.",
    "構築番号 {number} は成功しました。",
    "إعادة المحاولة بعد {number} ثانية.",
    "Nothing to do here, really – go outside 🌳.",
    ".",
    "..a line that starts with dots",
    "From the team: this line starts with “From”.",
    "https://example.com/runs/{number}?a=1&b=2#" + "x" * 120,
]


def main() -> None:
    """Writes the file."""
    lines = [msgspec.json.encode({"kind": "scheduleEmail", "args": args}) for args in mails(random.Random(SEED))]
    PATH.write_bytes(b"\n".join(lines) + b"\n")


def mails(chance: random.Random) -> Iterator[dict[str, str]]:
    """The args of all mails, the special addresses spread among the others."""
    special = ["refused.example"] * REFUSED + ["greylisted.example"] * GREYLISTED
    domains = special + [chance.choice(DOMAINS) for _ in range(MAILS - len(special))]
    chance.shuffle(domains)
    for number, domain in enumerate(domains):
        yield one(chance, number, domain)


def one(chance: random.Random, number: int, domain: str) -> dict[str, str]:
    """One mail to the address `….<number>@<domain>`."""
    name = chance.choice(NAMES)
    user = "".join(char for char in name.lower() if char.isascii() and char.isalpha()) or "user"
    if chance.random() < 0.02:
        user = "jürgen"  # needs SMTPUTF8
    address = f"{user[:20]}.{number:04d}@{domain}"
    subject = chance.choice(SUBJECTS).format(name=name, number=chance.randrange(100_000))
    # most mails are short, some have pages
    sentences = chance.choice([1, 2, 3, 5]) if chance.random() < 0.995 else chance.randrange(40, 150)
    body = [chance.choice(SENTENCES).format(number=chance.randrange(100_000)) for _ in range(sentences)]
    text = f"Hello {name},\n\n" + chance.choice(["\n", "\n\n", " "]).join(body) + "\n"
    paragraphs = "".join(f"<p>{escaped(sentence)}</p>" for sentence in body)
    style = chance.choice(["", "<style>p { color: #333; margin: 0 }</style>"])
    html = f"<!doctype html><html><head>{style}</head><body><h1>Hello {escaped(name)}</h1>{paragraphs}</body></html>"
    return {
        "to": shown(name, address) if chance.random() < 0.5 else address,
        "subject": subject,
        "html": html,
        "text": text,
    }


def shown(name: str, address: str) -> str:
    """An address with its name, quoted if it must be."""
    special = any(char in '",.;:<>()[]@\\' for char in name)
    quoted = '"' + name.replace('"', r"\"") + '"' if special else name
    return f"{quoted} <{address}>"


def escaped(text: str) -> str:
    """Text as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    main()

"""The tables: vacuum, what keeps it from its work, indexes, partitions."""

from __future__ import annotations

from collections.abc import Iterator

from wqcore.watch.doctor.facts import Facts
from wqcore.watch.doctor.finding import Level, age, check, size

SNAPSHOT_REMARK_S, SNAPSHOT_PROBLEM_S = 600.0, 3600.0
NOTIFY_REMARK, NOTIFY_PROBLEM = 0.1, 0.5
DEAD_ROWS_REMARK = 1_000_000
BYTES_PER_ROW_REMARK, BLOAT_BYTES_MIN = 20_000, 256 << 20
INDEXES = (
    "job_pkey", "job_ready", "job_due", "job_job_key", "job_unique_key", "claim_pkey", "slot_pkey", "shard_pkey", "history_id"
)  # fmt: skip
AUTOVACUUM_OPTION = {"job": "autovacuum_vacuum_threshold=20000", "claim": "autovacuum_vacuum_threshold=5000"}


@check("autovacuum", "server", "tables")
def _autovacuum(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    server, schema, right = facts.one("server"), facts.settings.database.schema, True
    for name in ("autovacuum", "track_counts"):
        if server[name] != "on":
            right = False
            yield (
                "problem",
                f"{name} is off: tables grow without bounds",
                f"alter system set {name} = on; select pg_reload_conf()",
            )
    for row in facts.rows["tables"]:
        table = f'"{schema}"."{row["table"]}"'
        if "autovacuum_enabled=false" in row["options"] or "autovacuum_enabled=off" in row["options"]:
            right = False
            yield "problem", f"autovacuum is off for {table}", f"alter table {table} reset (autovacuum_enabled)"
        option = AUTOVACUUM_OPTION.get(row["table"])
        if option and option not in row["options"]:
            right = False
            text = f"{table} has other autovacuum settings than the migration gave it"
            yield "remark", text, f"alter table {table} set ({option})"
    if right:
        yield "ok", "on, with the settings of the migration", None


@check("dead rows", "tables")
def _dead_rows(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    right = True
    for row in facts.rows["tables"]:
        table, live, dead = row["table"], row["live"], row["dead"]
        since = "never vacuumed" if row["vacuumed_s"] is None else f"vacuumed {age(row['vacuumed_s'])} ago"
        if dead > DEAD_ROWS_REMARK and dead > live:
            right = False
            text = f"{table} has {dead:,} dead rows beside {live:,} ({since})"
            yield (
                "remark",
                text,
                "look at the oldest snapshot below; else let autovacuum work more (autovacuum_max_workers)",
            )
        elif table in ("job", "claim") and row["table_bytes"] > max(BLOAT_BYTES_MIN, BYTES_PER_ROW_REMARK * live):
            right = False
            schema = facts.settings.database.schema
            text = f"{table} takes {size(row['table_bytes'])} for {live:,} rows ({since})"
            yield "remark", text, f'vacuum (full) "{schema}"."{table}" at a quiet hour: it locks the table'
    if right and facts.schema_version:
        job = next((row for row in facts.rows["tables"] if row["table"] == "job"), None)
        yield "ok", f"{job['dead']:,} in job, beside about {job['live']:,}" if job else "no tables", None


@check("oldest snapshot", "snapshots", "role")
def _snapshots(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    found, blind = False, bool(facts.rows["role"]) and not facts.one("role")["sees_sessions"]
    for row in facts.rows["snapshots"]:
        age_s = row["age_s"] if row["age_s"] is not None else 0.0
        slot = row["what"] == "replication slot" and row["state"] == "inactive"
        if age_s < SNAPSHOT_REMARK_S and not slot:
            continue
        found = True
        who = " ".join(text for text in (row["what"], row["id"], row["who"], row["program"], row["state"]) if text)
        text = f"{who} keeps dead rows of {row['age_xids'] or 0:,} transactions" + (f", for {age(age_s)}" if age_s else "")
        yield (
            ("problem" if age_s >= SNAPSHOT_PROBLEM_S or slot else "remark"),
            text,
            _END[row["what"]].format(id=row["id"].replace("'", "''")),
        )
    if blind:
        fix = f'grant pg_read_all_stats to "{facts.one("server")["who"]}"'
        yield "unknown", "sessions of other users cannot be seen", fix
    elif not found:
        yield "ok", "nothing keeps dead rows for long", None


_END = {
    "session": "end it: select pg_terminate_backend({id})",
    "prepared transaction": "rollback prepared '{id}', or commit it",
    "replication slot": "select pg_drop_replication_slot('{id}'), if nothing needs it",
    "standby": "hot_standby_feedback = off on the standby, or end the long queries there",
}


@check("notifications", "notify")
def _notifications(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    usage = facts.one("notify")["usage"]
    text = f"the queue is {usage:.0%} full"
    fix = (
        "a session that listens stays in a transaction: find it in pg_stat_activity, the oldest xact_start, and end it"
    )
    if usage >= NOTIFY_REMARK:
        yield ("problem" if usage >= NOTIFY_PROBLEM else "remark"), text, fix
    else:
        yield "ok", text, None


@check("indexes", "indexes")
def _indexes(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    usable = {row["index"]: row["usable"] for row in facts.rows["indexes"]}
    schema = facts.settings.database.schema
    broken = [name for name, works in usable.items() if not works]
    for name in broken:
        yield "problem", f"index {name} is invalid", f'reindex index concurrently "{schema}"."{name}"'
    missing = [name for name in INDEXES if name not in usable] if facts.schema_version else []
    for name in missing:
        yield "problem", f"index {name} is missing", "make it again as in `wqcore/db/sql/migrations`"
    if usable and not broken and not missing:
        yield "ok", f"{len(usable)}, all valid", None


@check("history", "partitions")
def _history(facts: Facts) -> Iterator[tuple[Level, str, str | None]]:
    if not facts.rows["partitions"]:
        return
    row = facts.one("partitions")
    missing = [day for day in (row["today"], row["tomorrow"], row["day_after"]) if f"history_{day}" not in row["days"]]
    if missing:
        text = f"no partition for {', '.join(missing)}: its rows go into the net, which is slower to clear"
        yield (
            "remark",
            text,
            f'a master makes it within five minutes, or: select "{facts.settings.database.schema}".make_partitions()',
        )
    else:
        yield "ok", f"{len(row['days'])} day partitions", None

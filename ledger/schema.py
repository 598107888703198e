"""How the ledger's file is laid out, and how an older file becomes a newer one: the SQL. Pure."""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE chain(chain INTEGER PRIMARY KEY, author BLOB NOT NULL, net BLOB NOT NULL)",
        "CREATE UNIQUE INDEX chain_of ON chain(author, net)",
        "CREATE TABLE entry(n INTEGER PRIMARY KEY, id BLOB NOT NULL, chain INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, nonce BLOB NOT NULL, ref BLOB,"
        " body BLOB NOT NULL, sig BLOB NOT NULL)",
        "CREATE UNIQUE INDEX entry_id ON entry(id)",
        "CREATE INDEX entry_chain ON entry(chain, seq)",
        "CREATE INDEX entry_nonce ON entry(nonce)",
        "CREATE INDEX entry_ref ON entry(ref) WHERE ref IS NOT NULL",
    ),
    (
        "ALTER TABLE entry RENAME TO entry1",
        # What is looked for is kept and indexed by its start; whoever looks, compares the rest.
        "CREATE TABLE entry(n INTEGER PRIMARY KEY, id BLOB NOT NULL, chain INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, hlc INTEGER NOT NULL, checked INTEGER NOT NULL,"
        " task BLOB, ref BLOB, body BLOB NOT NULL, sig BLOB NOT NULL)",
        "INSERT INTO entry SELECT n, id, chain, seq, hlc_of(body), 1,"
        " substr(nonce, 1, 4), substr(ref, 1, 4), body, sig FROM entry1",
        "DROP TABLE entry1",
        "CREATE INDEX entry_id ON entry(substr(id, 1, 8))",
        "CREATE INDEX entry_chain ON entry(chain, seq)",
        "CREATE INDEX entry_task ON entry(task) WHERE task IS NOT NULL",
        "CREATE INDEX entry_ref ON entry(ref) WHERE ref IS NOT NULL",
        "CREATE INDEX entry_vouched ON entry(n) WHERE checked = 0",
        "ALTER TABLE chain ADD COLUMN height INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE chain ADD COLUMN top INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE chain ADD COLUMN top_id BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE chain ADD COLUMN count INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE chain ADD COLUMN sum BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE chain ADD COLUMN forked INTEGER NOT NULL DEFAULT 0",
    ),
    (
        "ALTER TABLE entry RENAME TO entry2",
        # Numbers are cheaper to index than bytes. raw is id, signature and body in one, which
        # saves an eighth of the time that a row takes.
        "CREATE TABLE entry(n INTEGER PRIMARY KEY, start INTEGER NOT NULL, chain INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, hlc INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 1,"
        " task INTEGER, ref INTEGER, raw BLOB NOT NULL)",
        "INSERT INTO entry SELECT n, number_of(substr(id, 1, 8)), chain, seq, hlc, checked,"
        " number_of(task), number_of(ref), raw_of(id, sig, body) FROM entry2",
        "DROP TABLE entry2",
        "CREATE INDEX entry_start ON entry(start)",
        "CREATE INDEX entry_chain ON entry(chain, seq)",
        "CREATE INDEX entry_task ON entry(task) WHERE task IS NOT NULL",
        "CREATE INDEX entry_ref ON entry(ref) WHERE ref IS NOT NULL",
        "CREATE INDEX entry_vouched ON entry(n) WHERE state = 0",
    ),
    (
        "CREATE TABLE carried(chain INTEGER NOT NULL, peer BLOB NOT NULL, owed BLOB NOT NULL,"
        " refunded BLOB NOT NULL, PRIMARY KEY(chain, peer)) WITHOUT ROWID",
        "ALTER TABLE chain ADD COLUMN low INTEGER NOT NULL DEFAULT 0",
    ),
)
"""What makes schema n+1 of schema n. Append only; a file of schema n has run the first n. A kind
that is new to the ledger is a new schema, so that a program that cannot read it says so."""

COUNTED_SINCE = 2
"""The schema that first knew what is held of each chain (holdings.py)."""

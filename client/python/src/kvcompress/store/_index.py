"""Which entries a folder has, how large they are and which was used least lately: a SQLite database beside them.

The files are what is stored; the database may be lost, and is made anew from them. Any process may be killed at any
moment: a transaction has happened or not.
"""

import contextlib
import os
import pathlib
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence

# `used` is a counter and no time: clocks jump. As the table's key it makes the entries lie in the order in which they
# were used, so that new ones go to its end, and victims are taken from its beginning.
_SCHEMA = (
    "CREATE TABLE entry(used INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL)",
    """CREATE TABLE state(one INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, entries INTEGER NOT NULL,
       scanned INTEGER NOT NULL, boot TEXT NOT NULL)""",
    "INSERT INTO state VALUES (1, 0, 0, 0, '')",
)
_VERSION = 1
# Seconds that a writer waits for those before it, and a look-up for one that repairs the database.
_WRITE_PATIENCE, _READ_PATIENCE = 2.0, 0.05
# Placeholders of one statement.
_CHUNK = 500
# Entries that one call evicts at most: what it takes longer is bounded.
MOST_EVICTED = 1024


class Index:
    """Threads may share it. Raises sqlite3.Error."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._inode = 0
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()

    @property
    def locks(self) -> list[threading.Lock]:
        """In the order in which they are taken."""
        return [self._read_lock, self._write_lock]

    def close(self) -> None:
        """The next call opens it again."""
        with self._read_lock, self._write_lock:
            self.disconnect()

    def disconnect(self) -> None:
        """With the locks held."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None

    def discard(self) -> None:
        """A database that is damaged; whoever has it open goes on with it until `is_replaced` tells them."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            pathlib.Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    # Reading.

    def found(self, ids: Sequence[bytes]) -> set[bytes]:
        """Those of the ids that are there."""
        known: set[bytes] = set()
        with self._reading() as db:
            for at in range(0, len(ids), _CHUNK):
                some = ids[at : at + _CHUNK]
                marks = "?" if len(some) == 1 else ",".join("?" * len(some))
                known.update(row[0] for row in db.execute(f"SELECT id FROM entry WHERE id IN ({marks})", some))
        return known

    def totals(self) -> tuple[int, int]:
        """Bytes and number of the entries."""
        with self._reading() as db:
            used, entries = db.execute("SELECT bytes, entries FROM state").fetchone()
        return used, entries

    def oldest(self, count: int) -> list[tuple[bytes, int]]:
        """Ids and sizes of those that were used least lately, in this order."""
        with self._reading() as db:
            return list(db.execute("SELECT id, size FROM entry ORDER BY used LIMIT ?", (count,)))

    def between(self, low: bytes, high: bytes) -> set[bytes]:
        """The ids from `low` to `high`."""
        with self._reading() as db:
            return {row[0] for row in db.execute("SELECT id FROM entry WHERE id BETWEEN ? AND ?", (low, high))}

    def scanned(self) -> int:
        """How many shards of the folder were compared with this, one after the other, since the machine's start."""
        with self._reading() as db:
            return int(db.execute("SELECT scanned FROM state").fetchone()[0])

    # Writing: each of these is one transaction.

    def admit(
        self,
        entries: Sequence[tuple[bytes, int]],
        capacity: int | None,
        used: Collection[bytes],
        unlink: Callable[[bytes], None],
    ) -> tuple[set[bytes], int]:
        """Adds entries, ids and sizes in bytes, or replaces them, after it has noted that those of the ids `used` were
        used. Over the capacity it has `unlink` remove those that were used least lately, before they are forgotten
        here. Those of the new ones for which there is no room after MOST_EVICTED of them are not added. Gives the ids
        that were added and stay, and how many entries were evicted."""
        with self._writing() as db:
            self._touch(db, used)
            for entry_id, size in entries:
                self._set(db, entry_id, size)
            kept, evicted = {entry_id for entry_id, _ in entries}, 0
            if capacity is not None:
                evicted = self._evict(db, capacity, kept, unlink)
            return kept, evicted

    def touch(self, used: Collection[bytes]) -> None:
        with self._writing() as db:
            self._touch(db, used)

    def add(self, entries: Sequence[tuple[bytes, int]]) -> None:
        """As those that were used least lately, where they are not there already."""
        with self._writing() as db:
            (at,) = db.execute("SELECT coalesce(min(used), 0) FROM entry").fetchone()
            for number, (entry_id, size) in enumerate(entries):
                row = (at - 1 - number, entry_id, size)
                if db.execute("INSERT OR IGNORE INTO entry VALUES (?, ?, ?)", row).rowcount:
                    self._count(db, size, 1)

    def drop(self, ids: Collection[bytes]) -> None:
        with self._writing() as db:
            for entry_id in ids:
                self._drop(db, entry_id)

    def set_scanned(self, scanned: int) -> None:
        with self._writing() as db:
            db.execute("UPDATE state SET scanned = ?", (scanned,))

    # Within a transaction.

    def _touch(self, db: sqlite3.Connection, used: Collection[bytes]) -> None:
        at = self._last(db)
        rows = ((at + 1 + number, entry_id) for number, entry_id in enumerate(used))
        db.executemany("UPDATE entry SET used = ? WHERE id = ?", rows)

    def _last(self, db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT coalesce(max(used), 0) FROM entry").fetchone()[0])

    def _set(self, db: sqlite3.Connection, entry_id: bytes, size: int) -> None:
        self._drop(db, entry_id)
        db.execute("INSERT INTO entry VALUES (?, ?, ?)", (self._last(db) + 1, entry_id, size))
        self._count(db, size, 1)

    def _drop(self, db: sqlite3.Connection, entry_id: bytes) -> None:
        row = db.execute("SELECT used, size FROM entry WHERE id = ?", (entry_id,)).fetchone()
        if row is not None:
            db.execute("DELETE FROM entry WHERE used = ?", row[:1])
            self._count(db, -row[1], -1)

    def _count(self, db: sqlite3.Connection, size: int, entries: int) -> None:
        db.execute("UPDATE state SET bytes = bytes + ?, entries = entries + ?", (size, entries))

    def _evict(self, db: sqlite3.Connection, capacity: int, kept: set[bytes], unlink: Callable[[bytes], None]) -> int:
        """Takes those of `kept` away that go. How many others went."""
        evicted = 0
        (used,) = db.execute("SELECT bytes FROM state").fetchone()
        while used > capacity and evicted < MOST_EVICTED:
            for entry_id, size in db.execute("SELECT id, size FROM entry ORDER BY used LIMIT 16").fetchall():
                if used <= capacity:
                    break
                evicted += entry_id not in kept
                kept.discard(entry_id)
                unlink(entry_id)
                self._drop(db, entry_id)
                used -= size
        if used > capacity:
            for entry_id in kept:
                unlink(entry_id)  # what they were to replace
                self._drop(db, entry_id)
            kept.clear()
        return evicted

    # Connections.

    def is_replaced(self) -> bool:
        """Whether the database is another file than the one that is open, or none."""
        with self._write_lock:
            if self._writer is None:
                return False
            try:
                return os.stat(self._path).st_ino != self._inode
            except FileNotFoundError:
                return True

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            if self._reader is None:
                with self._write_lock:
                    self._opened()
                self._reader = self._connect(_READ_PATIENCE)
            yield self._reader

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            db = self._opened()
            with _transaction(db):
                yield db

    def _opened(self) -> sqlite3.Connection:
        """The connection that writes. sqlite3.DatabaseError for the database of another version."""
        if self._writer is None:
            db = self._connect(_WRITE_PATIENCE)
            if not _is_current(db):
                db.execute("PRAGMA journal_mode = WAL")
                with _transaction(db):
                    _make(db)
            self._writer, self._inode = db, os.stat(self._path).st_ino
        return self._writer

    def _connect(self, patience: float) -> sqlite3.Connection:
        # For its owner alone; SQLite gives its other files the same mode. One that is there must not be opened: closing
        # it would let go of the locks that SQLite has on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, timeout=patience, isolation_level=None, check_same_thread=False)
        # Written back at checkpoints alone: a crash of the machine costs the last entries, and no more.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -32768")
        return db


def _version(db: sqlite3.Connection) -> int:
    """Zero of a new one. sqlite3.DatabaseError for that of another version."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"the index is of version {version}")
    return int(version)


def _is_current(db: sqlite3.Connection) -> bool:
    """Without a wait for writers."""
    return bool(_version(db)) and db.execute("SELECT boot FROM state").fetchone() == (_boot_id(),)


def _make(db: sqlite3.Connection) -> None:
    if not _version(db):
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    # After a crash of the machine entries may be missing whose files are there.
    db.execute("UPDATE state SET scanned = 0, boot = :boot WHERE boot != :boot", {"boot": _boot_id()})


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _boot_id() -> str:
    """Of the machine's last start."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

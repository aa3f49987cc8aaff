import random
from contextlib import suppress

import lmdb
import pytest

from chinese_files import write_entries
from unicl.data.formats.lmdb import DATA, opened
from unicl.errors import UserError


@pytest.mark.parametrize(("count", "largest"), [(0, 10), (1, 10), (3000, 40), (600, 5000), (20, 100_000)])
def test_every_value_is_found_where_the_lmdb_package_put_it(tmp_path, count, largest):
    rng = random.Random(count)
    written = {str(k): rng.randbytes(rng.randint(0, largest)) for k in range(count)}
    write_entries(tmp_path / "a", written)
    with opened(tmp_path / "a") as database:
        entries = list(database.entries())
        assert all(database.read(e.offset, e.size) == written[e.key.decode()] for e in entries)
    assert [entry.key.decode() for entry in entries] == sorted(written)
    raw = (tmp_path / "a" / DATA).read_bytes()
    assert all(raw[e.offset : e.offset + e.size] == written[e.key.decode()] for e in entries)


def test_changed_and_removed_entries_are_those_of_the_last_transaction(tmp_path):
    write_entries(tmp_path, {str(k): b"old" * 1000 for k in range(300)})
    with lmdb.open(str(tmp_path), map_size=1 << 28) as database, database.begin(write=True) as change:
        for k in range(0, 300, 3):
            change.delete(str(k).encode())
        for k in range(1, 300, 3):
            change.put(str(k).encode(), b"new" * 2000)
    with opened(tmp_path) as database:
        found = {e.key.decode(): database.read(e.offset, e.size) for e in database.entries()}
    assert found == {str(k): b"new" * 2000 if k % 3 == 1 else b"old" * 1000 for k in range(300) if k % 3}


def test_a_folder_without_the_file_and_a_file_of_another_kind_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no data.mdb, which is the LMDB itself \(lock.mdb is only its lock\)"):
        list(_read(tmp_path))
    for content in (b"", b"no database", bytes(8192)):
        (tmp_path / DATA).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as an LMDB, it is cut off or of another kind"):
            list(_read(tmp_path))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_an_error_and_no_traceback(tmp_path, share):
    write_entries(tmp_path, {str(k): bytes(3000) for k in range(400)})
    whole = (tmp_path / DATA).read_bytes()
    (tmp_path / DATA).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="copy it again, or make it again"):
        list(_read(tmp_path))


def test_any_damage_of_the_tree_is_an_error_or_changes_what_is_read_but_never_hangs(tmp_path):
    write_entries(tmp_path, {str(k): b"x" * (k * 7 % 3000) for k in range(500)})
    whole = bytearray((tmp_path / DATA).read_bytes())
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / DATA).write_bytes(damaged)
        with suppress(UserError):
            assert len(list(_read(tmp_path))) < 100_000


def _read(folder):
    with opened(folder) as database:
        for entry in database.entries():
            yield entry.key, database.read(entry.offset, entry.size)

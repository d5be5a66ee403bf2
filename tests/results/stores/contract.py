"""What every `Store` promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from cvm_batch.results.parquet import parquet_bytes
from cvm_batch.results.stores.store import Store


class StoreContract:
    """Subclasses give the fixture ``store``, in which there is nothing."""

    def test_what_was_put_is_read(self, store: Store) -> None:
        store.put_new("runs/a.json", b"first")
        assert store.read("runs/a.json") == b"first"
        assert store.exists("runs/a.json")
        store.put("runs/a.json", memoryview(b"second"))
        assert store.read("runs/a.json") == b"second"
        store.put("runs/a.json", b"", lasting=False)
        assert store.read("runs/a.json") == b""

    def test_what_is_not_there(self, store: Store) -> None:
        assert not store.exists("runs/a.json")
        with pytest.raises(FileNotFoundError):
            store.read("runs/a.json")
        assert store.names("runs") == []
        store.delete("runs/a.json")
        store.delete("runs/a.json", lasting=False)

    def test_nothing_is_put_over_another(self, store: Store) -> None:
        store.put_new("slides/a.parquet", b"first")
        with pytest.raises(FileExistsError):
            store.put_new("slides/a.parquet", b"second")
        assert store.read("slides/a.parquet") == b"first"
        store.delete("slides/a.parquet")
        store.put_new("slides/a.parquet", b"second")
        store.delete("slides/a.parquet", lasting=False)
        assert not store.exists("slides/a.parquet")

    def test_of_many_who_put_one_name_one_succeeds(self, store: Store) -> None:
        def put(n: int) -> bool:
            try:
                store.put_new("lock/000001.json", bytes([n]))
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            (first,) = [n for n, done in enumerate(pool.map(put, range(8))) if done]
        assert store.read("lock/000001.json") == bytes([first])

    def test_names(self, store: Store) -> None:
        names = ["runs/a.json", "runs/b.live", "runs/old/c.json", "runs2/d.json"]
        for name in reversed(names):
            store.put(name, b"1")
        assert store.names("runs") == names[:2]
        assert store.names("runs", deep=True) == names[:3]
        store.delete("runs/a.json")
        assert store.names("runs") == names[1:2]

    def test_preparing_leaves_nothing(self, store: Store) -> None:
        store.prepare()
        store.prepare()
        assert store.names("lock") == store.names(".tmp") == []

    def test_pyarrow_reads_tables_from_it(self, store: Store) -> None:
        for n in range(3):
            table = pa.table({"n": [n]})
            store.put_new(f"slides/run_date=2026-01-3{n % 2}/{n}.parquet", parquet_bytes(table))
        folder = store.path_of("slides")
        dataset = ds.dataset(folder, filesystem=store.filesystem, partitioning="hive")
        found = dataset.to_table().sort_by("n").to_pydict()
        assert found == {"n": [0, 1, 2], "run_date": ["2026-01-30", "2026-01-31", "2026-01-30"]}
        one = store.path_of("slides/run_date=2026-01-30/2.parquet")
        assert pq.read_table(one, filesystem=store.filesystem)["n"].to_pylist() == [2]
        with pytest.raises(FileNotFoundError):
            pq.read_table(f"{one}.none", filesystem=store.filesystem)

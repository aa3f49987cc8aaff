import json
import os
import pickle

import pytest

from chinese_files import queries, write_entries, write_lmdb, write_pair
from unicl.data.formats.queries import CHINESE_CLIP, MUGE, asks_for_images, read_queries
from unicl.errors import UserError


def told(found):
    return [(query.id, query.text, list(query.images)) for query in found]


def test_texts_have_ids_and_several_images(tmp_path):
    write_pair(tmp_path)
    found = list(read_queries(tmp_path / "train_texts.jsonl"))
    assert told(found) == queries()
    assert {query.naming for query in found} == {CHINESE_CLIP}
    assert found[2].place == 3


def test_muges_queries_have_their_own_names_and_none_of_a_test_set_has_images(tmp_path):
    write_pair(tmp_path, "MR_train", texts="_queries.jsonl")
    found = list(read_queries(tmp_path / "MR_train_queries.jsonl"))
    assert told(found) == queries()
    assert {query.naming for query in found} == {MUGE}
    (tmp_path / "MR_test_queries.jsonl").write_text('{"query_id": 7, "query_text": "包"}\n', encoding="utf-8")
    assert told(read_queries(tmp_path / "MR_test_queries.jsonl")) == [(7, "包", [])]


def test_pairs_of_an_lmdb_are_texts_with_all_their_images_again(tmp_path):
    assert sorted(told(read_queries(write_lmdb(tmp_path) / "pairs"))) == queries()


@pytest.mark.parametrize("line", ['{"text": "x"}', '{"text": "x", "image_ids": 3}', '{"text_id": 1, "image_ids": []}'])
def test_a_line_without_ids_or_text_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "image_ids": []}\n\n' + line, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"a.jsonl, line 3 has .*; wanted are 'text' and 'image_ids', a list of the ids"
    ):
        list(read_queries(tmp_path / "a.jsonl"))


def test_an_lmdb_that_was_not_finished_is_named(tmp_path):
    record = pickle.dumps((1, 2, "x"))
    for entries, reason in (
        ({"0": record}, "has no num_samples or num_images, which is written last"),
        ({"0": record, "num_samples": "3"}, "holds 1 of 3 entries; make it again"),
        ({"1": record, "num_samples": "1"}, "has no record 0; make it again"),
        ({"0": pickle.dumps("x"), "num_samples": "1"}, r"is no \(image id, text id, text\) of Chinese-CLIP's"),
        ({"0": b"", "num_samples": "1"}, r"is no \(image id, text id, text\) of Chinese-CLIP's"),
    ):
        folder = write_entries(tmp_path / str(len(list(tmp_path.iterdir()))), entries)
        with pytest.raises(UserError, match=reason):
            list(read_queries(folder))


def test_a_record_that_would_run_a_program_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = write_entries(tmp_path / "pairs", {"0": pickle.dumps(Evil()), "num_samples": "1"})
    with pytest.raises(UserError, match=r"it asks for posix.system"):
        list(read_queries(folder))
    assert not (tmp_path / "ran").exists()


def test_texts_that_name_images_by_ids_alone_are_told_from_other_tables(tmp_path):
    for row, alone in (
        ({"text_id": 1, "text": "x", "image_ids": [2]}, True),
        ({"query_id": 1, "query_text": "x", "item_ids": [2]}, True),
        ({"image": "a.jpg", "text": "x", "image_ids": [2]}, False),
        ({"text": "x"}, False),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
        assert asks_for_images(tmp_path / "a.jsonl") == alone
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe{")
    assert not asks_for_images(tmp_path / "a.jsonl")

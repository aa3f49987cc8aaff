import json

import pytest
from cn_clip.eval import evaluation, evaluation_tr

from chinese_files import images_of, queries, write_lmdb, write_pair
from evaluate_oracles import all_cosines, parts_model, tiny_model
from unicl.data.sources import load
from unicl.errors import UserError
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.predictions import read_answers, score_predictions
from unicl.evaluate.report import to_markdown
from unicl.evaluate.run import evaluate

FEW = Bootstrap(resamples=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zh")
    write_pair(folder)
    return folder


@pytest.fixture(scope="module")
def written(data):
    """The folder of the predictions and their report."""
    source = load(f"{data / 'train_imgs.tsv'}")
    report = evaluate(tiny_model(), [source], tasks=["retrieval"], bootstrap=FEW, predictions=data / "out")
    return data / "out", report


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ten_best_answers_are_those_of_the_full_table(written):
    model = tiny_model()
    contents, asked = images_of(), queries()
    scores = all_cosines(
        model.embed_image(list(contents.values()), view="instances"),
        model.embed_text([text for _, text, _ in asked], view="instances"),
    )
    ids = list(contents)
    rows = lines(written[0] / "train_predictions.jsonl")
    assert [row["text_id"] for row in rows] == [id for id, _, _ in asked]
    for t, row in enumerate(rows):
        column = [scores[i][t] for i in range(len(ids))]
        assert row["image_ids"] == [ids[i] for i in sorted(range(len(ids)), key=lambda i: -column[i])[:10]]
    back = lines(written[0] / "train_tr_predictions.jsonl")
    assert [row["image_id"] for row in back] == ids
    for i, row in enumerate(back):
        best = sorted(range(len(asked)), key=lambda t: -scores[i][t])[:10]
        assert row["text_ids"] == [asked[t][0] for t in best]


def test_scores_are_those_of_chinese_clips_own_scorers(data, written):
    folder, report = written
    texts = data / "train_texts.jsonl"
    back = folder / "tr.jsonl"
    right = {}
    for id, _, images in queries():
        for image in images:
            right.setdefault(image, []).append(id)
    back.write_text("".join(json.dumps({"image_id": i, "text_ids": t}) + "\n" for i, t in right.items()))
    for name, reference, scorer, direction in (
        ("train_predictions.jsonl", texts, evaluation, "text_to_image"),
        ("train_tr_predictions.jsonl", back, evaluation_tr, "image_to_text"),
    ):
        wanted = [value / 100 for value in scorer.compute_score(str(reference), str(folder / name))]
        alone = score_predictions(folder / name, [load(str(texts))], bootstrap=FEW)
        keys = [f"predictions/{direction}/{key}" for key in ("mean_recall", "r1", "r5", "r10")]
        assert [alone.numbers()[key] for key in keys] == pytest.approx(wanted)
        assert [report.numbers()[key] for key in keys] == pytest.approx(wanted)
    assert "train_tr_predictions.jsonl" in to_markdown(report)


def test_any_of_several_right_answers_counts(tmp_path):
    write_pair(tmp_path, "v", asked=[(1, "一", [100, 101]), (2, "二", [115]), (3, "三", [103])])
    answers = {1: [110, 101, *range(102, 110)], 2: [*range(100, 110)], 3: [103, *range(104, 113)]}
    rows = [json.dumps({"text_id": id, "image_ids": found}) for id, found in answers.items()]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    found = score_predictions(tmp_path / "p.jsonl", [load(str(tmp_path / "v_imgs.tsv"))], bootstrap=FEW).numbers()
    assert list(found.values()) == pytest.approx([5 / 9, 1 / 3, 2 / 3, 2 / 3])


def test_an_lmdb_gives_the_same_answers_as_the_files(tmp_path, written):
    source = load(str(write_lmdb(tmp_path / "lmdb")))
    evaluate(tiny_model(), [source], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path / "out")
    for name in ("train_predictions.jsonl", "train_tr_predictions.jsonl"):
        own, files = (read_answers(folder / name).found for folder in (tmp_path / "out", written[0]))
        assert own.keys() == files.keys()
    best = {id: answers[0] for id, answers in read_answers(tmp_path / "out" / "train_predictions.jsonl").found.items()}
    assert best == {row["text_id"]: row["image_ids"][0] for row in lines(written[0] / "train_predictions.jsonl")}


def test_a_model_of_parts_answers_by_its_scores(data, tmp_path):
    report = evaluate(
        parts_model(), [load(str(data / "train_imgs.tsv"))], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path
    )
    found = report.numbers()
    # Ranks count ties and float16 against the model; answers are ten of the same scores.
    assert found["predictions/text_to_image/r10"] == pytest.approx(found["retrieval/text_to_image/r10"], abs=0.1)


def test_of_a_test_set_the_answers_are_written_and_nothing_is_scored(tmp_path):
    write_pair(tmp_path, "MR_test", texts="_queries.jsonl", asked=[(k, f"查询{k}", []) for k in range(12)])
    source = load(str(tmp_path / "MR_test_imgs.tsv"))
    report = evaluate(tiny_model(), [source], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path / "out")
    assert report.numbers() == {}
    assert "retrieval was left out: the data has no captions" in report.notes
    first = lines(tmp_path / "out" / "MR_test_predictions.jsonl")[0]
    assert list(first) == ["query_id", "query_text", "item_ids"]
    assert len(set(first["item_ids"])) == 10
    assert set(first["item_ids"]) <= set(images_of())
    with pytest.raises(UserError, match=r"names no right answer \(a test set\?\)"):
        score_predictions(tmp_path / "out" / "MR_test_predictions.jsonl", [source])
    with pytest.raises(UserError, match="the data has no captions"):
        evaluate(tiny_model(), [source], tasks=["retrieval"])


def test_an_image_that_cannot_be_read_finds_nothing_and_is_found_by_nothing(tmp_path):
    tsv = write_pair(tmp_path)
    tsv.write_text(tsv.read_text().replace("\n101\t", "\n101\tAAAA"), encoding="utf-8")
    report = evaluate(tiny_model(), [load(str(tsv))], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path)
    assert [one.id for one in report.unreadable] == ["image 101"]
    assert report.results[1].scores[-1].n == 16
    back = read_answers(tmp_path / "train_tr_predictions.jsonl").found
    assert 101 not in back
    assert all(101 not in found for found in read_answers(tmp_path / "train_predictions.jsonl").found.values())
    with pytest.raises(UserError, match="1 of 16 queries are not answered, the first is 101"):
        score_predictions(tmp_path / "train_tr_predictions.jsonl", [load(str(tsv))])


def test_fewer_than_ten_candidates_and_data_without_ids_are_errors(tmp_path, colours):
    write_pair(tmp_path, count=4)
    with pytest.raises(UserError, match="predictions are 10 answers to a query, and the data has fewer images and"):
        evaluate(tiny_model(), [load(str(tmp_path))], bootstrap=FEW, predictions=tmp_path)
    with pytest.raises(UserError, match=r"predictions need ids of images and texts, and .* has none"):
        evaluate(tiny_model(), [colours], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path)


def test_texts_without_an_id_or_with_the_same_one_are_named(tmp_path):
    write_pair(tmp_path, asked=[(1, "x", [100]), (1, "y", [101])])
    (tmp_path / "p.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"has the text_id 1 twice \(lines 1 and 2\); number them anew"):
        score_predictions(tmp_path / "p.jsonl", [load(str(tmp_path))])
    (tmp_path / "train_texts.jsonl").write_text('{"text": "x", "image_ids": [100]}', encoding="utf-8")
    with pytest.raises(UserError, match="line 1 has no 'text_id' to be answered under"):
        score_predictions(tmp_path / "p.jsonl", [load(str(tmp_path))])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("", "is empty; wanted is one object a query"),
        ("no json", "line 1 is not JSON"),
        ('{"text": 1}', "line 1 has text; wanted are|has text; wanted are"),
        (json.dumps({"text_id": 1, "image_ids": [1]}), "the query 1 has 1 answers; wanted are exactly 10"),
        (json.dumps({"text_id": 1, "image_ids": 7}), "has no list of answers; wanted are exactly 10"),
        (json.dumps({"text_id": 1, "image_ids": [1] * 10}), "comes twice; wanted are 10 different ones"),
        ("\n".join([json.dumps({"text_id": 1, "image_ids": list(range(10))})] * 2), "the query 1 is answered twice"),
        (json.dumps({"text_id": 1, "image_ids": list(range(10))}), "31 of 32 queries are not answered, the first is 2"),
        (
            json.dumps({"text_id": 1, "image_ids": list(range(10))}) + '\n{"query": 2}',
            "line 2 lacks .*image_ids.*, which the first line has",
        ),
    ],
)
def test_answers_that_scorers_refuse_are_named(data, tmp_path, rows, reason):
    (tmp_path / "p.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        score_predictions(tmp_path / "p.jsonl", [load(str(data / "train_imgs.tsv"))])


def test_a_missing_file_and_several_sources_are_named(data, tmp_path):
    source = load(str(data / "train_imgs.tsv"))
    with pytest.raises(UserError, match="cannot be read as predictions: No such file"):
        score_predictions(tmp_path / "p.jsonl", [source])
    with pytest.raises(UserError, match="belongs to one data set, and 2 are given"):
        score_predictions(tmp_path / "p.jsonl", [source, source])


def test_of_equal_scores_the_first_answers_come_first(tmp_path):
    tsv = write_pair(tmp_path)
    first = tsv.read_text(encoding="utf-8").splitlines()[0].partition("\t")[2]
    tsv.write_text("".join(f"{id}\t{first}\n" for id in images_of()), encoding="utf-8")
    evaluate(tiny_model(), [load(str(tsv))], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path)
    rows = lines(tmp_path / "train_predictions.jsonl")
    assert all(row["image_ids"] == list(images_of())[:10] for row in rows)


def test_ids_keep_the_kind_that_the_data_gives_them(tmp_path):
    asked = [(f"q{id}", text, [str(image) for image in images]) for id, text, images in queries()]
    source = load(str(write_pair(tmp_path, asked=asked)))
    report = evaluate(tiny_model(), [source], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path)
    assert report.numbers()["predictions/image_to_text/r10"] > 0
    assert read_answers(tmp_path / "train_tr_predictions.jsonl").found.keys() == {str(id) for id in images_of()}
    numbers = [{"text_id": id, "image_ids": list(range(10))} for id, _, _ in asked]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, numbers)))
    with pytest.raises(UserError, match="0 is an answer, and the ids of the data are str"):
        score_predictions(tmp_path / "p.jsonl", [source])


def test_two_sources_that_would_write_one_file_are_named(data, tmp_path):
    source = load(str(data / "train_imgs.tsv"))
    with pytest.raises(UserError, match="two of the sources would write train_predictions.jsonl"):
        evaluate(tiny_model(), [source, source], tasks=["retrieval"], bootstrap=FEW, predictions=tmp_path)

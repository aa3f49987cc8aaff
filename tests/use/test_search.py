import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unicl.compare import scores
from unicl.errors import UserError
from unicl.space import Embedding, Parts
from unicl.use import search as module
from unicl.use.embed import embed
from unicl.use.query import Query
from unicl.use.search import cache_folder, nearest, search
from unicl.use.vectors import Manifest, Vectors


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_the_order_is_that_of_cosines_in_plain_loops(model, photos, cache):
    found = search(model, [photos], query="a red flower", top=20, cache=cache)
    text = model.embed_text(["a red flower"])[0].double()
    images = [p for p in sorted(photos.rglob("*.jpg")) if p.name != "cut.jpg"]
    scores = {str(p): float(model.embed_image([p])[0].double() @ text) for p in images}
    assert [hit.id for hit in found.hits] == sorted(scores, key=lambda id: -scores[id])
    assert [hit.score for hit in found.hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
    assert [hit.rank for hit in found.hits] == list(range(1, 13))
    assert found.searched == 12
    assert [item.reason for item in found.skipped] == ["cut off"]


def test_a_picture_finds_itself_and_takes_its_meaning_away(model, photos, cache):
    photo = photos / "flower" / "3.jpg"
    assert search(model, [photos], query=str(photo), top=1, cache=cache).hits[0].image == photo
    assert search(model, [photos], query=f"- {photo}", top=12, cache=cache).hits[-1].image == photo


def test_the_second_search_embeds_no_picture_again(model, photos, cache, monkeypatch):
    first = search(model, [photos], query="water", cache=cache)
    monkeypatch.setattr(model.image, "forward", lambda _: pytest.fail("an image was embedded again"))
    assert search(model, [photos], query="water", cache=cache) == first


def test_a_changed_picture_is_seen(model, photos, cache):
    search(model, [photos], query="water", cache=cache)
    Image.new("RGB", (30, 30), "red").save(photos / "temple" / "4.jpg")
    Image.new("RGB", (30, 30), "red").save(photos / "red.png")
    found = search(model, [photos], query=str(photos / "red.png"), top=1, cache=cache)
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert found.searched == 13


def test_models_do_not_share_their_cache(model, other, photos, cache):
    first = search(model, [photos], query="water", cache=cache)
    assert search(other, [photos], query="water", cache=cache).hits != first.hits
    assert search(model, [photos], query="water", cache=cache) == first


def test_a_folder_of_vectors_is_searched_without_its_pictures(model, other, photos, tmp_path, cache):
    wanted = search(model, [photos], query="water", cache=cache)
    embed(model, [photos], out=tmp_path / "v")
    shutil.rmtree(photos)
    assert search(model, [tmp_path / "v"], query="water", cache=cache).hits == wanted.hits
    with pytest.raises(UserError, match="another model"):
        search(other, [tmp_path / "v"], query="water", cache=cache)
    with pytest.raises(UserError, match="searched alone"):
        search(model, [tmp_path / "v", tmp_path], query="water", cache=cache)


def test_vectors_of_the_class_view_meet_the_query_in_that_view(model, photos, tmp_path, cache):
    vectors = embed(model, [photos], out=tmp_path / "v", view="classes")
    found = search(model, [tmp_path / "v"], query="water", cache=cache)
    text = model.embed_text(["water"], view="classes")[0].numpy()
    assert found.hits[0].score == pytest.approx(float((np.array(vectors.values) @ text).max()), abs=1e-5)


def test_pictures_inside_a_table_can_be_shown_again(model, photos, tmp_path, cache):
    content = (photos / "temple" / "0.jpg").read_bytes()
    (tmp_path / "inline.tsv").write_text(f"image\ttitle\n{base64.b64encode(content).decode()}\ta\n")
    found = search(model, [tmp_path / "inline.tsv"], query="water", cache=cache)
    assert found.hits[0].image == content
    assert search(model, [tmp_path / "inline.tsv"], query="water", cache=cache) == found


def test_the_best_are_the_same_however_large_the_blocks_are(tmp_path, monkeypatch):
    rows = torch.nn.functional.normalize(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    rows[700] = rows[20]
    manifest = Manifest(
        model="", recipe="", view="instances", width=8, dtype="float32", count=1000, skipped=0, paths=()
    )
    vectors = Vectors(folder=tmp_path, manifest=manifest, values=rows.numpy())
    wanted = sorted(range(1000), key=lambda row: (-float(rows[row] @ rows[20]), row))[:30]
    for block in (7, 64, 5000):
        monkeypatch.setattr(module, "BLOCK", block)
        scores, found = nearest(vectors, rows[20], top=30)
        assert found == wanted
        assert found[:2] == [20, 700]
        assert scores == sorted(scores, reverse=True)


def test_mistakes_are_told_before_pictures_are_embedded(model, photos, tmp_path, cache):
    for query, message in (("", "query is empty"), ("gone.jpg", "is not there"), ("red - red", "cancel")):
        with pytest.raises(UserError, match=message):
            search(model, [photos], query=query, cache=cache)
    with pytest.raises(UserError, match="top=0"):
        search(model, [photos], query="red", top=0, cache=cache)
    assert not list(cache.rglob("*.npy"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        search(model, [tmp_path / "empty"], query="red", cache=cache)


def test_vectors_that_are_not_finished_are_told(model, photos, tmp_path, cache):
    embed(model, [photos], out=tmp_path / "v")
    (tmp_path / "v" / "chunks").mkdir()
    for name in ("manifest.json", "embeddings.npy"):
        (tmp_path / "v" / name).rename(tmp_path / "v" / "chunks" / name)
    with pytest.raises(UserError, match="not finished"):
        search(model, [tmp_path / "v"], query="red", cache=cache)


def test_the_cache_lies_where_the_user_or_the_system_says(monkeypatch, tmp_path):
    monkeypatch.setenv("UNICL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("UNICL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "unicl"


def test_a_cache_that_cannot_be_written_stops_nobody(model, photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNICL_CACHE", str(tmp_path / "file"))
    assert len(search(model, [photos], query="red").hits) == 12
    with pytest.raises(UserError, match="cannot keep vectors"):
        search(model, [photos], query="red", cache=Path(tmp_path / "file"))


def token_wise(parted, vectors, text):
    """The scores of all pictures with their parts as they are kept."""
    values = torch.from_numpy(np.asarray(vectors.parts, dtype=np.float32))
    parts = Parts(values=values, mask=torch.ones(values.shape[:2], dtype=torch.bool))
    whole = torch.from_numpy(np.array(vectors.values))
    images = Embedding(whole=whole, features=torch.zeros(len(whole), 0), parts=parts)
    return scores(parted, images, parted.encode_texts([text]), view="instances")[1][:, 0]


@pytest.mark.parametrize("rerank", [12, 13, 1000])
def test_as_many_candidates_as_pictures_are_a_search_by_parts(parted, photos, tmp_path, rerank):
    vectors = embed(parted, [photos], out=tmp_path / "v")
    for text in ("a red square number 2", "blue", "a green square"):
        wanted = token_wise(parted, vectors, text)
        found = search(parted, [tmp_path / "v"], query=text, top=5, rerank=rerank)
        order = wanted.argsort(descending=True, stable=True)[:5].tolist()
        assert [hit.id for hit in found.hits] == [item.id for item in vectors.take(order)]
        assert [hit.score for hit in found.hits] == pytest.approx(wanted[order].tolist(), abs=1e-6)
        cosines = torch.from_numpy(np.array(vectors.values)) @ parted.embed_text([text])[0]
        assert [hit.cosine for hit in found.hits] == pytest.approx(cosines[order].tolist(), abs=1e-6)
        assert (found.by, found.compared, found.note) == ("tokenwise", 12, "")


def test_candidates_are_the_nearest_by_whole_vectors(parted, photos, tmp_path):
    vectors = embed(parted, [photos], out=tmp_path / "v")
    for rerank, top, compared in ((4, 2, 4), (3, 5, 5)):
        found = search(parted, [tmp_path / "v"], query="red", top=top, rerank=rerank)
        cosines = torch.from_numpy(np.array(vectors.values)) @ parted.embed_text(["red"])[0]
        near = sorted(cosines.argsort(descending=True)[:compared].tolist())
        wanted = token_wise(parted, vectors, "red")
        best = sorted(near, key=lambda row: -float(wanted[row]))[:top]
        assert [hit.id for hit in found.hits] == [item.id for item in vectors.take(best)]
        assert found.compared == compared


def test_without_reranking_hits_are_those_of_cosines(parted, photos, tmp_path):
    vectors = embed(parted, [photos], out=tmp_path / "v")
    found = search(parted, [tmp_path / "v"], query="red", rerank=0)
    cosines, rows = nearest(vectors, Query.parse("red").vector(parted), top=12)
    assert [hit.score for hit in found.hits] == [hit.cosine for hit in found.hits] == cosines
    assert [hit.id for hit in found.hits] == [item.id for item in vectors.take(rows)]
    assert (found.by, found.compared, found.note) == ("cosine", 0, "as asked")
    with pytest.raises(UserError, match="rerank=-1"):
        search(parted, [tmp_path / "v"], query="red", rerank=-1)


def test_equal_scores_stay_in_the_order_of_the_pictures(parted, photos, tmp_path):
    vectors = embed(parted, [photos], out=tmp_path / "v")
    content = np.array(vectors.parts)
    content[[1, 3, 8]] = content[0] = 0
    np.save(tmp_path / "v" / "parts.npy", content)
    found = search(parted, [tmp_path / "v"], query="red")
    equal = [hit.id for hit in found.hits if hit.score == 0]
    assert equal == [item.id for item in vectors.take([0, 1, 3, 8])]


def test_no_parts_beyond_the_candidates_are_read(parted, photos, tmp_path):
    out = tmp_path / "v"
    vectors = embed(parted, [photos], out=out)
    wanted = search(parted, [out], query="red", top=3, rerank=5)
    _, rows = nearest(vectors, parted.embed_text(["red"])[0], top=5)
    content = np.array(vectors.parts)
    content[[row for row in range(12) if row not in rows]] = np.nan
    np.save(out / "parts.npy", content)
    assert search(parted, [out], query="red", top=3, rerank=5) == wanted
    with pytest.raises(UserError, match=r"damaged.*embed the pictures again"):
        search(parted, [out], query="red", top=3, rerank=6)


def test_pictures_and_sums_are_left_to_whole_vectors(parted, photos, cache):
    photo = photos / "flower" / "3.jpg"
    for query in (str(photo), "red - blue", f"{photo} + red"):
        found = search(parted, [photos], query=query, cache=cache)
        assert (found.by, found.compared) == ("cosine", 0)
        assert "only one text alone" in found.note
    assert search(parted, [photos], query=str(photo), top=1, cache=cache).hits[0].image == photo


def test_the_cache_holds_parts(parted, photos, cache, monkeypatch):
    search(parted, [photos], query=str(photos / "flower" / "3.jpg"), cache=cache)
    assert len(list(cache.rglob("parts.npy"))) == 1
    monkeypatch.setattr(parted.image, "forward", lambda _: pytest.fail("an image was embedded again"))
    assert search(parted, [photos], query="red", cache=cache).by == "tokenwise"


def test_a_folder_without_parts_is_searched_by_whole_vectors(parted, other, photos, tmp_path):
    embed(parted, [photos], out=tmp_path / "v", parts=False)
    found = search(parted, [tmp_path / "v"], query="red")
    assert found.hits == search(parted, [tmp_path / "v"], query="red", rerank=0).hits
    assert found.note == "since the folder keeps no parts"
    with pytest.raises(UserError, match="another model"):
        search(other, [tmp_path / "v"], query="red")


def test_damaged_parts_are_told(parted, photos, tmp_path):
    out = tmp_path / "v"
    vectors = embed(parted, [photos], out=out)
    whole = (out / "parts.npy").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:50], b""):
        (out / "parts.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"parts.npy.*embed the pictures again"):
            search(parted, [out], query="red")
    for wrong in (np.array(vectors.values), np.zeros((12, 4, 7), np.float16), np.zeros((12, 4, 32), np.float32)):
        np.save(out / "parts.npy", wrong)
        with pytest.raises(UserError, match=r"parts.npy .* has shape"):
            search(parted, [out], query="red")
    (out / "parts.npy").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        search(parted, [out], query="red")


def test_models_of_whole_vectors_are_searched_as_ever(model, photos, cache):
    found = search(model, [photos], query="red", cache=cache)
    assert found == search(model, [photos], query="red", rerank=0, cache=cache)
    assert (found.by, found.compared, found.note) == ("cosine", 0, "")
    assert all(hit.score == hit.cosine for hit in found.hits)

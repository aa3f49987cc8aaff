from dataclasses import replace

import numpy as np
import pytest
import torch

from unicl.errors import UserError
from unicl.model import load_model
from unicl.space import Parts
from unicl.use import parts as module
from unicl.use.embed import embed
from unicl.use.parts import measure, packed, readable, rescored, told, why_whole
from unicl.use.query import Query
from unicl.use.vectors import KeptParts

TEXT = "a red square number 2"


@pytest.fixture
def kept(parted, photos, tmp_path):
    return embed(parted, [photos], out=tmp_path / "v")


def by_loops(parted, kept):
    """FILIP's equation 5 over the parts as they are kept: each word's best place, and the mean of these."""
    words = parted.encode_texts([TEXT]).parts
    words = words.values[0][words.mask[0]].double().numpy()
    scores = []
    for places in np.asarray(kept.parts, dtype=np.float64):
        best = [max(float(word @ place) for place in places) for word in words]
        scores.append(sum(best) / len(best))
    return scores


def test_the_parts_of_a_picture_are_counted(parted, model, classifier):
    parts = parted.encode_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).parts
    assert measure(parted, view="instances") == KeptParts(count=parts.values.shape[1], width=32)
    assert measure(model, view="instances") is None
    assert measure(classifier, view="instances") is None


def test_parts_are_rounded_to_half_precision():
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = packed(Parts(values=values, mask=torch.ones(3, 4, dtype=torch.bool)), kept=KeptParts(count=4, width=5))
    assert found.dtype == np.float16
    assert np.array_equal(found, values.numpy().astype(np.float16))
    none = Parts(values=torch.zeros(0, 1, 5), mask=torch.ones(0, 1, dtype=torch.bool))
    assert packed(none, kept=KeptParts(count=4, width=5)).shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("value", "real", "count", "message"),
    [
        (1.0, False, 4, "padding among them; keep none with --no-parts"),
        (1.0, True, 3, "3 parts of 5 can be kept"),
        (7e4, True, 4, "as large as 7e.04.*end at 65,504"),
        (float("nan"), True, 4, "not finite"),
    ],
)
def test_parts_that_cannot_be_kept_are_told(value, real, count, message):
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 3] = real
    values = torch.ones(2, 4, 5)
    values[1, 2, 0] = value
    with pytest.raises(UserError, match=message):
        packed(Parts(values=values, mask=mask), kept=KeptParts(count=count, width=5))


def test_scores_are_those_of_plain_loops_over_the_kept_parts(parted, kept, monkeypatch):
    wanted = by_loops(parted, kept)
    assert rescored(parted, kept, rows=range(12), text=TEXT) == pytest.approx(wanted, abs=1e-6)
    assert rescored(parted, kept, rows=[7, 2], text=TEXT) == pytest.approx([wanted[7], wanted[2]], abs=1e-6)
    assert rescored(parted, kept, rows=[], text=TEXT) == []
    for tile in (1, 40_000):
        monkeypatch.setattr(module, "TILE", tile)
        assert rescored(parted, kept, rows=range(12), text=TEXT) == pytest.approx(wanted, abs=1e-6)


def test_only_the_asked_rows_are_read_and_damage_there_is_told(parted, kept):
    wanted = rescored(parted, kept, rows=[3, 8], text=TEXT)
    spoilt = np.array(kept.parts)
    spoilt[[row for row in range(12) if row not in (3, 8)]] = np.nan
    spoilt = replace(kept, parts=spoilt)
    assert rescored(parted, spoilt, rows=[3, 8], text=TEXT) == wanted
    with pytest.raises(UserError, match="are damaged: 1 of 2 .* row 4"):
        rescored(parted, spoilt, rows=[3, 4], text=TEXT)


def test_what_is_left_to_whole_vectors_says_why(parted, kept, photos):
    def why(text, *, vectors=kept, rerank=100):
        return why_whole(parted, vectors, query=Query.parse(text), rerank=rerank)

    assert why("red") == ""
    assert why("red", rerank=0) == "as asked"
    assert why("red", vectors=replace(kept, parts=None)) == "since the folder keeps no parts"
    assert why("red", vectors=replace(kept, manifest=replace(kept.manifest, width=8))).startswith("since the simil")
    for text in ("red + blue", "- red", str(photos / "flower" / "0.jpg")):
        assert why(text) == "since only one text alone is compared with parts"


def test_a_similarity_of_whole_vectors_needs_no_parts(model, photos, tmp_path):
    (tmp_path / "own.py").write_text(
        "def far(images, texts):\n    table = images.whole @ texts.whole.T\n    return table, -table\n"
    )
    model.save(tmp_path / "model")
    own = load_model(tmp_path / "model")
    terms = tuple(replace(term, similarity=f"{tmp_path / 'own.py'}:far") for term in own.settings.terms)
    own.settings = replace(own.settings, terms=terms)
    vectors = embed(own, [photos], out=tmp_path / "v")
    assert vectors.parts is None
    assert why_whole(own, vectors, query=Query.parse("red"), rerank=5) == ""
    wanted = -(own.embed_image([item.image for item in vectors.items()]) @ own.embed_text(["red"])[0])
    assert rescored(own, vectors, rows=range(12), text="red") == pytest.approx(wanted.tolist(), abs=1e-5)


def test_sizes_are_said_in_the_unit_that_fits():
    assert [readable(size) for size in (999, 1500, 2_000_000, 25_088_000_000)] == [
        "999 bytes",
        "1.5 kB",
        "2.0 MB",
        "25.1 GB",
    ]


def test_a_folder_tells_what_it_keeps(parted, model, kept, photos, tmp_path):
    places, width = kept.parts.shape[1:]
    assert told(parted, kept.manifest) == f" with {places} parts of {width} each ({readable(kept.parts.nbytes)})"
    assert "without parts" in told(parted, replace(kept.manifest, parts=None))
    assert told(model, embed(model, [photos], out=tmp_path / "whole").manifest) == ""

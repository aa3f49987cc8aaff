from dataclasses import replace

import pytest
import torch

from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.model import load_model
from unicl.space import Slice
from unicl.use.embed import embed
from unicl.use.vectors import Item, fingerprint, is_vectors, open_vectors, read_items, require_same_model


def test_the_fingerprint_follows_the_weights_and_not_the_folder(model, other, tmp_path):
    model.save(tmp_path / "a")
    assert fingerprint(load_model(tmp_path / "a")) == fingerprint(model) != fingerprint(other)
    again = load_model(tmp_path / "a")
    with torch.no_grad():
        again.image.head.weight[0, 0] += 1e-3
    assert fingerprint(again) != fingerprint(model)


@pytest.mark.parametrize("field", [{"eps": 1e-3}, {"options": {"act_layer": "relu"}}, {"frame": Frame(mode="squash")}])
def test_the_fingerprint_follows_what_weights_do_not_say(field, model):
    image = replace(model.settings.image, **field)
    settings, before = model.settings, fingerprint(model)
    model.settings = replace(settings, image=image)
    after = fingerprint(model)
    model.settings = settings
    assert after != before == fingerprint(model)


def test_items_come_back_as_they_were_written(tmp_path):
    items = [
        Item(id="a/花.jpg", image=tmp_path / "花.jpg", stamp="1-2"),
        Item(id="b", image=Slice(tmp_path / "x.tar", 512, 99), stamp="3"),
        Item(id="c", image=b"bytes", stamp="4", reason="cut off"),
    ]
    (tmp_path / "items.jsonl").write_text("".join(map(Item.line, items)), encoding="utf-8")
    assert list(read_items(tmp_path / "items.jsonl")) == [*items[:2], replace(items[2], image=None)]


def test_rows_are_found_in_the_order_asked(model, photos, tmp_path):
    vectors = embed(model, [photos], out=tmp_path / "v")
    ids = [item.id for item in vectors.items()]
    assert [item.id for item in vectors.take([5, 0, 5])] == [ids[5], ids[0], ids[5]]


def test_damaged_vectors_are_told(model, photos, tmp_path):
    with pytest.raises(UserError, match="holds no vectors"):
        open_vectors(tmp_path)
    out = tmp_path / "v"
    vectors = embed(model, [photos], out=out)
    lines = (out / "items.jsonl").read_text().splitlines(keepends=True)
    (out / "items.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    with pytest.raises(UserError, match="line 3 is damaged"):
        list(vectors.items())
    content = (out / "embeddings.npy").read_bytes()
    (out / "embeddings.npy").write_bytes(content[:200])
    with pytest.raises(UserError, match="cannot be read"):
        open_vectors(out)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        open_vectors(out)
    assert is_vectors(out)


def test_vectors_of_another_model_are_refused(model, other, photos, tmp_path):
    vectors = embed(model, [photos], out=tmp_path / "v")
    require_same_model(vectors, model=fingerprint(model))
    with pytest.raises(UserError, match="another model"):
        require_same_model(vectors, model=fingerprint(other))

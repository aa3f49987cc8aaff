import json
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from unicl.data.image import Frame
from unicl.data.text import train_tokenizer
from unicl.errors import UserError
from unicl.model import ModelSettings, TwoTowers, load_model
from unicl.objective.terms import ContrastSettings
from unicl.space import Slice
from unicl.towers.image import ImageSettings
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.text import TextSettings
from unicl.use.embed import embed
from unicl.use.vectors import Item, KeptParts, fingerprint, is_vectors, open_vectors, read_items, require_same_model


def test_the_fingerprint_follows_the_weights_and_not_the_folder(model, other, tmp_path):
    model.save(tmp_path / "a")
    assert fingerprint(load_model(tmp_path / "a")) == fingerprint(model) != fingerprint(other)
    again = load_model(tmp_path / "a")
    with torch.no_grad():
        again.image.head.weight[0, 0] += 1e-3
    assert fingerprint(again) != fingerprint(model)


def test_a_text_tower_from_a_folder_has_one_fingerprint_wherever_it_lies(tmp_path):
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer = train_tokenizer(["a red flower", "a temple by the water"], vocab_size=300, context=16)
    tokenizer.save(tmp_path / "bert")
    text = TextSettings(name=str(tmp_path / "bert"))
    image = ImageSettings(name="test_vit", size=32)
    settings = ModelSettings(image=image, text=text, width=16, terms=(ContrastSettings(),))
    model = TwoTowers(settings, tokenizer=tokenizer).eval()
    for name in ("a", "b"):
        model.save(tmp_path / name)
    found = {fingerprint(load_model(tmp_path / name)) for name in ("a", "b")}
    assert found == {fingerprint(model)}
    model.text.backbone.config.hidden_act = "relu"
    assert fingerprint(model) not in found


@pytest.mark.parametrize("field", [{"eps": 1e-3}, {"options": {"act_layer": "relu"}}, {"frame": Frame(mode="squash")}])
def test_the_fingerprint_follows_what_weights_do_not_say(field, model):
    image = replace(model.settings.image, **field)
    settings, before = model.settings, fingerprint(model)
    model.settings = replace(settings, image=image)
    after = fingerprint(model)
    model.settings = settings
    assert after != before == fingerprint(model)


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ("image", {"parts": ImageParts(unit=False)}),
        ("image", {"parts": ImageParts(reduced=2)}),
        ("image", {"enlarged": 64}),
        ("text", {"parts": TextParts(words=True)}),
        ("text", {"parts": TextParts(marks="none")}),
        ("text", {"fixed": True}),
        ("text", {"context": 9}),
        ("term", {"similarity": "attended"}),
        ("term", {"options": {"pads": "zero"}}),
        ("term", {"use_options": {"pads": "zero"}}),
        ("term", {"dims": 8}),
    ],
)
def test_the_fingerprint_follows_what_makes_parts_and_their_scores(parted, where, field):
    settings, before = parted.settings, fingerprint(parted)
    if where == "term":
        changed = replace(settings, terms=(replace(settings.terms[0], **field),))
    else:
        changed = replace(settings, **{where: replace(getattr(settings, where), **field)})
    parted.settings = changed
    after = fingerprint(parted)
    parted.settings = settings
    assert after != before == fingerprint(parted)


def test_enlarged_pictures_make_other_vectors_of_a_model_without_parts_too(model):
    settings, before = model.settings, fingerprint(model)
    model.settings = replace(settings, image=replace(settings.image, enlarged=64))
    after = fingerprint(model)
    model.settings = settings
    assert after != before


def test_how_a_model_is_trained_does_not_change_its_fingerprint(parted):
    settings, before = parted.settings, fingerprint(parted)
    parted.settings = replace(settings, terms=(replace(settings.terms[0], part_share=0.5, smoothing=0.1),))
    after = fingerprint(parted)
    parted.settings = settings
    assert after == before


def test_a_folder_of_the_first_format_still_opens(model, photos, tmp_path):
    out = tmp_path / "v"
    embed(model, [photos], out=out)
    made = json.loads((out / "manifest.json").read_text())
    del made["parts"]
    (out / "manifest.json").write_text(json.dumps(made | {"format": 1}))
    assert open_vectors(out).parts is None
    assert open_vectors(out).manifest.format == 1
    (out / "manifest.json").write_text(json.dumps(made | {"format": 3}))
    with pytest.raises(UserError, match="are of format 3, and this version of unicl reads 2"):
        open_vectors(out)


def test_kept_parts_take_two_bytes_a_number():
    assert KeptParts(count=49, width=256).size(1_000_000) == 25_088_000_000


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

from dataclasses import replace

import pytest
import torch

from evaluate_oracles import colour_samples, source, tiny_model
from unicl.errors import UserError
from unicl.evaluate.pictures import distinct_images, embed_pictures
from unicl.space import Finding, Sample


def test_rows_of_one_image_are_one_sample_with_all_captions_and_labels(tmp_path):
    first = Sample(id="1", image=tmp_path / "a.png", captions=("one", "two"), labels=("x",))
    again = Sample(id="2", image=tmp_path / "a.png", captions=("two", "three"), labels=("y", "x"))
    other = Sample(id="3", image=tmp_path / "b.png")
    merged = distinct_images([source([first, again, other, Sample(id="4", captions=("no image",))], root=tmp_path)])
    assert merged == (replace(first, captions=("one", "two", "three"), labels=("x", "y")), other)


def test_equal_bytes_are_one_image_and_ids_tell_the_source(tmp_path):
    one, two = Sample(id="1", image=b"abc"), Sample(id="1", image=b"abcd")
    merged = distinct_images([source([one], root=tmp_path, name="a"), source([one, two], root=tmp_path, name="b")])
    assert [sample.id for sample in merged] == ["a/1", "b/1"]


def test_embeddings_are_those_of_the_model(model, tmp_path):
    samples = colour_samples(tmp_path, each=2)
    pictures = embed_pictures(model, samples, batch=3)
    paths = [sample.image for sample in samples]
    assert torch.allclose(pictures.features, model.image_features(paths), atol=1e-5)
    assert torch.allclose(pictures.instances, model.embed_image(paths, view="instances"), atol=1e-5)
    assert torch.allclose(pictures.classes, model.embed_image(paths, view="classes"), atol=1e-5)
    assert pictures.classes.shape == (8, 8)
    assert pictures.instances.shape == (8, 16)


def test_a_classifier_without_texts_is_read_with_its_own_view(tmp_path):
    model = tiny_model(texts=False, classes=("red", "blue"))
    samples = colour_samples(tmp_path, each=1)
    pictures = embed_pictures(model, samples)
    assert torch.allclose(pictures.classes, model.embed_image([s.image for s in samples], view="classes"), atol=1e-5)


def test_each_image_passes_the_tower_once(model, tmp_path):
    seen = []
    handle = model.image.backbone.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    try:
        embed_pictures(model, colour_samples(tmp_path, each=2), batch=3)
    finally:
        handle.remove()
    assert seen == [3, 3, 2]


def test_the_model_stays_in_the_mode_it_was_in(tmp_path):
    model = tiny_model().train()
    embed_pictures(model, colour_samples(tmp_path, each=1))
    assert model.training
    assert model.image.backbone.training


def test_unreadable_images_are_set_aside_with_their_reasons(model, tmp_path):
    good = colour_samples(tmp_path, each=1)
    empty, gone = tmp_path / "empty.png", tmp_path / "gone.png"
    empty.write_bytes(b"")
    bad = [Sample(id="empty.png", image=empty), Sample(id="gone.png", image=gone)]
    pictures = embed_pictures(model, [bad[0], *good[:2], bad[1], *good[2:]], batch=2)
    assert pictures.samples == tuple(good)
    assert pictures.features.shape[0] == 4
    assert [one.id for one in pictures.unreadable] == ["empty.png", "gone.png"]
    assert all(one.reason for one in pictures.unreadable)


def test_nothing_that_can_be_read_is_an_error(model, tmp_path):
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images can be read \(empty.png: "):
        embed_pictures(model, [Sample(id="empty.png", image=empty)])
    with pytest.raises(UserError, match="no sample with an image"):
        embed_pictures(model, [])


def test_taking_samples_takes_all_that_belongs_to_them(job):
    taken = job.pictures.take(torch.tensor([3, 1]))
    assert taken.samples == (job.pictures.samples[3], job.pictures.samples[1])
    for name in ("features", "instances", "classes"):
        assert torch.equal(getattr(taken, name), getattr(job.pictures, name)[[3, 1]])


def test_each_image_of_a_study_is_a_picture_of_its_own(tmp_path):
    one, two, three, four = (sample.image for sample in colour_samples(tmp_path, each=1))
    findings = (("Edema", Finding.PRESENT),)
    study = Sample(id="s1", image=one, others=(two, three), captions=("a report",), findings=findings)
    found = distinct_images(
        [source([study, Sample(id="x", image=three, labels=("a",)), Sample(id="y", image=four)], root=tmp_path)]
    )
    assert [(s.id, s.image, s.others) for s in found] == [
        ("s1", one, ()),
        ("s1#2", two, ()),
        ("s1#3", three, ()),
        ("y", four, ()),
    ]
    assert [s.captions for s in found] == [("a report",)] * 3 + [()]
    assert [s.findings for s in found] == [findings] * 3 + [()]
    assert found[2].labels == ("a",)

"""Ranks by scores of parts, against loops over all pairs."""

from dataclasses import replace
from threading import Barrier, Thread

import pytest
import torch

from evaluate_oracles import colour_samples, late_interaction, parts_model, pessimistic_rank, real_parts
from unicl import compare
from unicl.errors import UserError
from unicl.evaluate.parts import Peers, encoded_texts, rank_by_scores
from unicl.evaluate.retrieval import Pairs, pair_captions


@pytest.fixture(scope="module")
def model():
    return parts_model()


@pytest.fixture(scope="module")
def crowd(model, tmp_path_factory):
    """Encoded images and texts, and who belongs to whom."""
    samples = colour_samples(tmp_path_factory.mktemp("parts"), each=3)
    texts, pairs = pair_captions([s.captions for s in samples])
    images = model.encode_images([s.image for s in samples])
    return compare.kept(model, images), encoded_texts(model, texts), pairs


def loops(images, texts, pairs):
    """Both directions' ranks in loops, image to text by its own scores and text to image by those."""
    sides = [
        [late_interaction(real_parts(images.parts, i), real_parts(texts.parts, t)) for t in range(len(texts.whole))]
        for i in range(len(images.whole))
    ]
    own = {(int(i), int(t)) for i, t in zip(pairs.images, pairs.texts, strict=True)}
    forth = [
        pessimistic_rank([s[0] for s in row], {t for t in range(len(row)) if (i, t) in own})
        for i, row in enumerate(sides)
    ]
    back = [
        pessimistic_rank([row[t][1] for row in sides], {i for i in range(len(sides)) if (i, t) in own})
        for t in range(len(texts.whole))
    ]
    return forth, back


@pytest.mark.parametrize("products", [compare.PRODUCTS, 900])
def test_ranks_are_those_of_all_pairs_each_direction_by_its_own_scores(model, crowd, monkeypatch, products):
    monkeypatch.setattr(compare, "PRODUCTS", products)
    images, texts, pairs = crowd
    found = rank_by_scores(model, images, texts, pairs=pairs)
    forth, back = loops(images, texts, pairs)
    assert found.image_to_text.tolist() == forth
    assert found.text_to_image.tolist() == back


def test_a_model_that_says_one_thing_of_everything_finds_nothing(model, crowd, monkeypatch):
    monkeypatch.setattr(compare, "PRODUCTS", 900)
    images, texts, _ = crowd
    same = torch.zeros(12, dtype=torch.int64)
    pairs = Pairs(images=torch.arange(12), texts=torch.arange(12))
    found = rank_by_scores(model, images.select(same), texts.select(same), pairs=pairs)
    assert found.image_to_text.tolist() == found.text_to_image.tolist() == [12] * 12


def test_a_query_without_a_right_answer_has_no_rank(model, crowd):
    images, texts, _ = crowd
    pairs = Pairs(images=torch.tensor([1, 1]), texts=torch.tensor([0, 2]))
    found = rank_by_scores(model, images, texts, pairs=pairs)
    assert found.image_to_text.tolist()[:3] == [0, found.image_to_text[1], 0]
    assert found.image_to_text[1] > 0
    assert (found.text_to_image > 0).nonzero()[:, 0].tolist() == [0, 2]


def test_processes_that_share_the_pictures_find_the_same_ranks(model, crowd):
    images, texts, pairs = crowd
    whole = rank_by_scores(model, images, texts, pairs=pairs)
    barrier, said, found = Barrier(2), {}, {}

    def exchange(rank, merge):
        def together(values):
            said[rank] = values
            barrier.wait()
            merged = merge(torch.stack([said[0], said[1]]))
            barrier.wait()
            return merged

        return together

    def work(rank, rows):
        mine = (pairs.images >= rows.start) & (pairs.images < rows.stop)
        found[rank] = rank_by_scores(
            model,
            images.select(rows),
            texts,
            pairs=Pairs(images=pairs.images[mine] - rows.start, texts=pairs.texts[mine]),
            peers=Peers(most=exchange(rank, lambda t: t.amax(0)), total=exchange(rank, lambda t: t.sum(0))),
        )

    threads = [Thread(target=work, args=each) for each in ((0, slice(0, 7)), (1, slice(7, 12)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat([found[0].image_to_text, found[1].image_to_text]), whole.image_to_text)
    assert torch.equal(found[0].text_to_image, whole.text_to_image)
    assert torch.equal(found[1].text_to_image, whole.text_to_image)


def test_texts_are_kept_in_half_however_many_come_at_once(model):
    several = encoded_texts(model, ["red"] * 3000)
    assert several.parts.values.dtype == torch.float16
    assert len(several.whole) == 3000
    assert encoded_texts(model, []).whole.shape == (0, 16)


def test_scores_that_are_no_numbers_are_refused(model, crowd):
    images, texts, pairs = crowd
    broken = replace(images, parts=replace(images.parts, values=images.parts.values * torch.nan))
    with pytest.raises(UserError, match="scores of images and their texts are not finite"):
        rank_by_scores(model, broken, texts, pairs=pairs)

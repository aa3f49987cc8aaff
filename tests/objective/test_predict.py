import math
from dataclasses import replace

import pytest
import torch

import oracles
from unicl.errors import UserError
from unicl.objective.peers import share
from unicl.objective.plan import Tiling
from unicl.objective.terms import Caption, CaptionSettings, Objective
from unicl.objective.words import Words
from unicl.space import NOTHING, Captions, Columns, Embedding, Keys, Parts
from unicl.towers.decoder import turned

WORDS = Words(size=20, pad=0, start=1, end=2, mask=3, context=9)
FEATURES = 6
TEXTS = ([1, 7, 8, 2], [1, 12, 2], [1, 5, 9, 9, 19, 2])
IMAGES = (2, 0, 2)


def captions(texts=TEXTS, images=IMAGES, hidden=()):
    """Padded texts; ``hidden`` are places (row, column) that show the mask."""
    longest = max(map(len, texts), default=1)
    tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts]).view(-1, longest)
    wanted = torch.full_like(tokens, NOTHING)
    mask = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    for row, column in hidden:
        wanted[row, column], tokens[row, column] = int(tokens[row, column]), WORDS.mask
    rows = torch.tensor(images, dtype=torch.int64)
    return Captions(images=rows, texts=torch.arange(len(texts)), tokens=tokens, mask=mask, wanted=wanted)


def columns(found):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(3, 4, FEATURES, dtype=torch.float64, generator=generator, requires_grad=True)
    whole = torch.ones(3, 2, dtype=torch.float64)
    images = Embedding(whole=whole, features=whole, parts=Parts(values=values, mask=torch.ones(3, 4).bool()))
    none = Keys.empty(3)
    return Columns(
        images=images,
        image_keys=none,
        texts=None,
        text_keys=Keys.empty(0),
        text_counts=torch.zeros(0),
        captions=found,
    )


def term(task, **more):
    torch.manual_seed(0)
    made = Caption(CaptionSettings(task=task, width=16, heads=2, **more), places=FEATURES, words=WORDS)
    return made.double().eval()


def loss(made, found):
    return made(share(columns(found)))


def by_hand(made, found):
    """The oracle's value from tables of numbers."""
    with torch.no_grad():
        seen = made.places(share(columns(found)), found)
        lengths = found.mask.sum(1).tolist()
        if made.settings.task == "masked":
            scores = made.decoder(found.tokens, found.mask, seen).tolist()
            rows = [[(at, word) for at, word in enumerate(row) if word != NOTHING] for row in found.wanted.tolist()]
            return oracles.hidden_words(scores, rows)
        total = 0.0
        for direction in ("forward", "backward")[: 1 + (made.settings.task == "bicaptioning")]:
            tokens = found.tokens if direction == "forward" else turned(found.tokens, found.mask)
            scores = made.decoder(tokens, found.mask, seen, direction=direction).tolist()
            total += oracles.captioning(scores, [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)])
        return total


CASES = {
    "captioning": captions(),
    "bicaptioning": captions(),
    "masked": captions(hidden=((0, 2), (2, 1), (2, 4))),
}


@pytest.mark.parametrize("task", CASES)
def test_the_loss_is_the_oracles_in_value_and_gradient(task):
    made, found = term(task), CASES[task]
    if task == "bicaptioning":
        torch.nn.init.normal_(made.decoder.backward_transformer.layer[0].output.dense.weight)
    value = loss(made, found)
    assert math.isclose(float(value.detach()), by_hand(made, found), rel_tol=1e-12)
    value.backward()
    words = made.decoder.embedding.words.weight
    for parameter, place in (
        (made.decoder.bias, (9,)),
        (made.decoder.bias, (4,)),
        (words, (9, 3)),
        (words, (8, 0)),
        (made.decoder.projection.weight, (2, 5)),
        (made.decoder.embedding.places.weight, (2, 1)),
    ):
        step, before = 1e-6, float(parameter.detach()[place])
        values = []
        for moved in (before + step, before - step):
            parameter.data[place] = moved
            values.append(by_hand(made, found))
        parameter.data[place] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert math.isclose(float(parameter.grad[place]), slope, rel_tol=1e-5, abs_tol=1e-8)


def test_at_the_start_both_directions_are_captioning_forward_and_of_turned_texts():
    both, one = term("bicaptioning"), term("captioning")
    one.load_state_dict({k: v for k, v in both.state_dict().items() if "backward" not in k})
    turned_around = captions([text[::-1] for text in TEXTS])
    together = float(loss(both, captions()).detach())
    assert together == pytest.approx(
        sum(float(loss(one, each).detach()) for each in (captions(), turned_around)), rel=1e-12
    )


def test_images_are_taught_where_they_have_captions_and_words_of_others_do_not_matter():
    made, given = term("bicaptioning"), columns(captions())
    made(share(given)).backward()
    grads = given.images.parts.values.grad.flatten(1).abs().sum(1)
    assert grads[1] == 0
    assert (grads[[0, 2]] > 0).all()
    found = captions()
    written_over = replace(found, tokens=found.tokens.masked_fill(~found.mask, 11))
    assert torch.equal(loss(made, written_over), loss(made, found))


def test_no_captions_are_no_loss_but_a_graph():
    for task in CASES:
        value = loss(term(task), captions((), ()))
        assert float(value) == 0
        assert value.requires_grad
    assert float(loss(term("masked"), captions())) == 0


def test_more_words_than_one_are_weighed_alike_whoever_has_them():
    """The mean is over words, not over captions: two processes need the count of all."""
    made = term("captioning")
    values = [float(loss(made, captions(TEXTS[k : k + 1], IMAGES[k : k + 1]))) for k in range(3)]
    counts = [len(text) - 1 for text in TEXTS]
    wanted = sum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)
    assert float(loss(made, captions())) == pytest.approx(wanted, rel=1e-12)


def test_bf16_rounds_the_decoder_and_nothing_else():
    made, given = term("captioning").float(), columns(captions())
    exact = float(made(share(given)))
    rounded = float(made(share(given), Tiling(operands="bf16")))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2e-2)


def test_what_is_missing_is_said():
    def made(**more):
        return Objective((CaptionSettings(width=16, heads=2),), features=4, **more)

    with pytest.raises(UserError, match="nobody says of which tokens"):
        made(image_parts=4)
    with pytest.raises(UserError, match="the image tower gives none.*image.parts"):
        made(words=WORDS)
    with pytest.raises(UserError, match="between two marks"):
        made(words=replace(WORDS, start=-1), image_parts=4)
    with pytest.raises(UserError, match=r"data\.captions=true"):
        loss(term("captioning"), None)

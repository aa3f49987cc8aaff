import pytest
import torch
from torch.nn import functional as F

import oracles
from unicl.errors import UserError
from unicl.objective.masked import Masked, MaskedSettings
from unicl.objective.peers import share
from unicl.objective.plan import Tiling
from unicl.objective.words import Words
from unicl.space import NOTHING, Captions, Columns, Embedding, Keys, Parts

PLACES, STATES, SIZE = 5, 8, 11
LENGTHS = (4, 6, 3)
IMAGES = (2, 0, 2)
HIDDEN = {0: (2, 7), 1: (4, 3), 2: (1, 9)}
"""The place and the word that is hidden in each caption."""
MODELS = ["tfm", "att_fc"]


def term(model, **more):
    torch.manual_seed(1)
    words = Words(size=SIZE, pad=0, start=1, end=2, mask=4, context=9)
    made = Masked(MaskedSettings(model=model, **more), places=PLACES, states=STATES, words=words).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def columns(*, order=None, images=IMAGES, hidden=HIDDEN, requires_grad=False):
    """Three pictures of four places and three captions, whose tokens stand in another ``order`` if one is given."""
    generator = torch.Generator().manual_seed(3)
    places = torch.randn(3, 4, PLACES, dtype=torch.float64, generator=generator)
    states = torch.randn(3, 6, STATES, dtype=torch.float64, generator=generator)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    wanted = torch.full((3, 6), NOTHING)
    for row, (at, word) in hidden.items():
        wanted[row, at] = word
    if order is not None:
        states, mask, wanted = states[:, order], mask[:, order], wanted[:, order]
    places.requires_grad_(requires_grad)
    whole = torch.ones(3, 2, dtype=torch.float64)
    rows = torch.tensor(images, dtype=torch.int64)
    return Columns(
        images=Embedding(whole=whole, features=whole, parts=Parts(values=places, mask=torch.ones(3, 4).bool())),
        image_keys=Keys.empty(3),
        texts=Embedding(whole=whole, features=whole, parts=Parts(values=states, mask=mask)),
        text_keys=Keys.empty(3),
        text_counts=torch.ones(3),
        captions=Captions(
            images=rows, texts=torch.arange(3), tokens=torch.zeros_like(wanted), mask=mask, wanted=wanted
        ),
    )


def scores(made, found):
    return made.scores(share(found), found.captions)[0]


def by_hand(made, found):
    """The loss in plain loops."""
    model, losses = made.model, []
    for row, (at, word) in HIDDEN.items():
        places = list(found.images.parts.values[IMAGES[row]])
        tokens = list(found.texts.parts.values[row][: LENGTHS[row]])
        if made.settings.model == "tfm":
            layer = model.encoder.layers[0]
            projected = [model.project.weight @ place + model.project.bias for place in places]
            states = oracles.encoded(
                [*projected, *tokens],
                heads=layer.self_attn.num_heads,
                inward=(layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias),
                outward=(layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias),
                norms=[(norm.weight, norm.bias) for norm in (layer.norm1, layer.norm2)],
                wide=(layer.linear1.weight, layer.linear1.bias),
                narrow=(layer.linear2.weight, layer.linear2.bias),
            )
            said = model.words.weight @ states[len(places) + at] + model.words.bias
        else:
            norms = [(norm.weight, norm.bias) for norm in (model.place_norm, model.token_norm)]
            attention = oracles.looked_at(
                places, tokens, norms=norms, matrices=(model.place.weight, model.token.weight)
            )
            seen = sum(share * place for share, place in zip(attention, places, strict=True))
            hidden = (model.dense.weight @ seen + model.dense.bias).clamp(min=0)
            said = model.words.weight @ hidden + model.words.bias
        losses.append(said.logsumexp(0) - said[word])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("model", MODELS)
def test_both_models_are_those_of_plain_loops_with_every_gradient(model):
    made = term(model, heads=2)
    found, other = columns(requires_grad=True), columns(requires_grad=True)
    value, wanted = made(share(found)), by_hand(made, other)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    parameters = list(made.parameters())
    own = torch.autograd.grad(value, [*parameters, found.images.parts.values])
    expected = torch.autograd.grad(wanted, [*parameters, other.images.parts.values])
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_attention_sums_to_one_and_ignores_the_order_of_a_caption():
    made, found = term("att_fc"), columns()
    places, tokens = found.images.parts.select(found.captions.images), found.texts.parts
    attention = made.model.attention(places, tokens)
    torch.testing.assert_close(attention.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert bool((attention > 0).all())
    order = torch.tensor([3, 5, 0, 4, 2, 1])
    turned = columns(order=order)
    torch.testing.assert_close(scores(made, turned), scores(made, found), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(share(turned)), made(share(found)), rtol=1e-12, atol=1e-12)


def test_only_its_attention_brings_a_caption_to_the_words_of_att_fc():
    """Where all places are alike, no caption changes anything."""
    made, found = term("att_fc"), columns()
    found.images.parts.values.copy_(found.images.parts.values[:, :1].expand(-1, 4, -1).clone())
    before = scores(made, found)
    found.texts.parts.values.mul_(-3)
    torch.testing.assert_close(scores(made, found), before, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(scores(term("tfm", heads=2), found), scores(term("tfm", heads=2), columns()))


@pytest.mark.parametrize("model", MODELS)
def test_padding_says_nothing(model):
    made, found = term(model, heads=2), columns()
    before = scores(made, found)
    found.texts.parts.values[~found.texts.parts.mask] = 100.0
    torch.testing.assert_close(scores(made, found), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_a_caption_without_a_hidden_word_has_no_share_in_the_mean(model):
    made, one = term(model, heads=2), {1: HIDDEN[1]}
    said = scores(made, columns(hidden=one))
    assert said.shape == (1, SIZE)
    expected = F.cross_entropy(scores(made, columns())[1:2], torch.tensor([HIDDEN[1][1]]))
    torch.testing.assert_close(made(share(columns(hidden=one))), expected, rtol=1e-12, atol=1e-12)
    nothing = made(share(columns(hidden={}, requires_grad=True)))
    assert nothing.item() == 0
    assert nothing.requires_grad


def test_each_head_is_64_wide_unless_told_and_must_fit():
    words = Words(size=SIZE, pad=0, start=1, end=2, mask=4, context=9)
    made = Masked(MaskedSettings(), places=PLACES, states=768, words=words)
    assert made.model.encoder.layers[0].self_attn.num_heads == 12
    with pytest.raises(UserError, match="8 numbers of a token cannot be cut into 3 heads"):
        term("tfm", heads=3)


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match=r"'masked' reads places .* --set 'image.parts=\{head: none, unit: false\}'"):
        Masked(MaskedSettings(), places=0, states=STATES, words=None)
    bare = columns()
    object.__setattr__(bare, "captions", None)
    with pytest.raises(UserError, match="data.captions=true and data.hidden"):
        term("tfm", heads=2)(share(bare))


def test_scores_in_bf16_are_close():
    made, found = term("att_fc").float(), columns()
    for each in (found.images.parts, found.texts.parts):
        object.__setattr__(each, "values", each.values.float())
    exact = made(share(found))
    torch.testing.assert_close(made(share(found), Tiling(operands="bf16")), exact, rtol=0.05, atol=0.05)

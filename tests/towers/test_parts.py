"""Parts of pictures and texts: what plain models say of each place and token, and nothing else."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import interpolate, normalize
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

import oracles
from unicl.data.text import Tokenizer, load_tokenizer, train_tokenizer
from unicl.errors import UserError
from unicl.space import Parts
from unicl.towers.build import build_text_tower
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.lengths import LEAST_ROWS
from unicl.towers.parts import (
    ImageParts,
    TextParts,
    image_states,
    mean_of,
    part_places,
    part_words,
    text_states,
    with_parts,
)
from unicl.towers.text import TextSettings, TextTower

WIDTH = 24
VIT = ImageSettings(name="test_vit", size=32, parts=ImageParts())
REGISTERS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "reg_tokens": 3}
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
TEXT = TextSettings(layers=3, dim=32, heads=4, context=20, parts=TextParts())
TEXTS = ["a red square", "two dogs, running", "", "a blue circle upon a green table " * 3]
TOKENIZER = train_tokenizer(["a red square", "two dogs, running", "a blue circle"] * 2, vocab_size=340, context=20)


def pixels(size=32, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def tower_of(settings, *, width=WIDTH, **fields):
    torch.manual_seed(0)
    tower = ImageTower(replace(settings, **fields), width=width)
    with torch.no_grad():
        # Zero-initialised norms of residual branches would hide them.
        for parameter in tower.backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return tower.eval()


def scaled(tower, images):
    return (images.to(tower.mean.dtype) / 255 - tower.mean) / tower.std


def text_tower(settings=TEXT, *, tokenizer=TOKENIZER, width=WIDTH, **fields):
    torch.manual_seed(0)
    tower = build_text_tower(replace(settings, **fields), width=width, tokenizer=tokenizer)
    return tower.double().eval()


IMAGES = {
    "class token": VIT,
    "norm of the mean": replace(VIT, options={"fc_norm": True}, pool="avg"),
    "mean": replace(VIT, pool="avg"),
    "registers": replace(VIT, name="vit_tiny_patch16_224", options=REGISTERS),
    "swin": replace(VIT, name="swin_tiny_patch4_window7_224", size=56, options=SWIN),
    "convolutions": replace(VIT, name="test_resnet", size=64),
    "convnext": replace(VIT, name="test_convnext", size=64),
    "efficientnet": replace(VIT, name="test_efficientnet", size=64),
    "a query of its own": replace(VIT, name="vit_base_patch16_siglip_224", options={"depth": 1, "embed_dim": 48}),
    "a query of ours": replace(VIT, name="test_resnet", size=64, pool="map"),
    "clip's resnet": replace(VIT, name="resnet50_clip", size=64, head="none", parts=ImageParts(head="linear")),
}


def plain_places(tower, images):
    """Places by timm's own functions, ``(N, P, F)``, without the tokens before them."""
    model = tower.backbone
    states = model.forward_features(scaled(tower, images))
    if states.ndim == 3:
        norm = getattr(model, "fc_norm", nn.Identity())
        return norm(states)[:, model.num_prefix_tokens :]
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return states.reshape(len(states), -1, states.shape[-1])
    if hasattr(model.head if hasattr(model, "head") else None, "norm"):
        states = model.head.norm(states)
    return torch.stack([image.reshape(len(image), -1).T for image in states])


@pytest.mark.parametrize("case", list(IMAGES))
def test_parts_of_any_timm_model_are_its_places_through_the_head(case):
    tower = tower_of(IMAGES[case]).double()
    images = pixels(IMAGES[case].size)
    found = tower(images)
    head = tower.parts.head if tower.parts.owns_head else tower.head
    wanted = normalize(head(plain_places(tower, images)), dim=-1)
    torch.testing.assert_close(found.parts.values, wanted, rtol=1e-9, atol=1e-11)
    assert found.parts.mask.shape == wanted.shape[:2]
    assert found.parts.mask.all()


@pytest.mark.parametrize("case", list(IMAGES))
def test_asking_for_parts_leaves_the_whole_vector_as_it_is(case):
    asked = tower_of(IMAGES[case]).double()
    plain = ImageTower(replace(IMAGES[case], parts=None), width=WIDTH).double().eval()
    plain.load_state_dict({k: v for k, v in asked.state_dict().items() if not k.startswith("parts.")})
    images = pixels(IMAGES[case].size)
    torch.testing.assert_close(asked(images).whole, plain(images).whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(asked.features(images), plain.features(images), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("case", "first"), [("class token", 1), ("registers", 4)])
def test_tokens_before_the_places_are_kept_if_asked(case, first):
    tower = tower_of(IMAGES[case])
    kept = tower_of(IMAGES[case], parts=ImageParts(first=True))
    places, all_tokens = tower(pixels()).parts, kept(pixels()).parts
    torch.testing.assert_close(all_tokens.values[:, first:], places.values)
    assert all_tokens.mask.shape[1] == places.mask.shape[1] + first


def test_parts_can_stay_as_long_as_they_are():
    tower = tower_of(VIT, parts=ImageParts(unit=False))
    lengths = tower(pixels()).parts.values.norm(dim=-1)
    assert (lengths - 1).abs().max() > 0.1


def test_the_whole_may_be_the_mean_of_the_parts_at_unit_length():
    tower = tower_of(VIT, pool="parts")
    found = tower(pixels())
    torch.testing.assert_close(found.whole, normalize(found.parts.values.mean(1), dim=-1))
    places = plain_places(tower, pixels())
    torch.testing.assert_close(found.features, places.mean(1))


@pytest.mark.parametrize(("stage", "side", "width"), [(2, 38, 512), (3, 19, 1024), (4, 10, 2048)])
def test_maps_of_a_resnet_at_299_are_those_of_its_layers(stage, side, width):
    """GLoRIA's regions: 19 x 19 places of the third stage (spec 5.6)."""
    parts = ImageParts(stage=stage, head="linear", unit=False)
    tower = tower_of(ImageSettings(name="resnet50", size=224, enlarged=299, parts=parts))
    model, images = tower.backbone, pixels(224, count=1)
    with torch.no_grad():
        found = tower.look(images)
        states = interpolate(scaled(tower, images), size=(299, 299), mode="bilinear", align_corners=True)
        states = model.maxpool(model.act1(model.bn1(model.conv1(states))))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4)[:stage]:
            states = layer(states)
        embedding = tower(found)
    assert states.shape == (1, width, side, side)
    torch.testing.assert_close(found.parts.values, states.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    by_convolution = nn.functional.conv2d(states, tower.parts.head.weight[..., None, None])
    torch.testing.assert_close(embedding.parts.values, by_convolution.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_enlarging_before_or_after_the_normalisation_is_the_same():
    # Each pixel of the larger picture is a mean of four with weights that sum to 1, which a shift and a factor pass.
    tower = tower_of(replace(VIT, name="test_resnet"), enlarged=47).double()
    after = interpolate(scaled(tower, pixels()), size=(47, 47), mode="bilinear", align_corners=True)
    torch.testing.assert_close(tower.look(pixels()).features, tower.backbone(after), rtol=1e-9, atol=1e-11)


def test_a_transformer_has_places_for_enlarged_pictures():
    tower = tower_of(VIT, enlarged=64)
    assert tower(pixels()).parts.mask.shape[1] == (64 // tower.backbone.patch_embed.patch_size[0]) ** 2


def test_no_picture_gives_no_row_of_parts():
    for settings in (VIT, IMAGES["clip's resnet"], replace(VIT, parts=ImageParts(reduced=4))):
        found = tower_of(settings)(pixels(settings.size, count=0))
        assert (len(found.whole), len(found.parts.values), len(found.parts.mask)) == (0, 0, 0)


@pytest.mark.parametrize(("pool", "stage"), [("default", None), ("parts", None), ("default", 0)])
def test_what_a_backbone_said_can_be_packed_and_goes_on_as_if_just_said(pool, stage):
    parts = ImageParts(stage=stage, head=None if stage is None else "linear")
    tower = ImageTower(replace(VIT, pool=pool, parts=parts, locked=True), width=WIDTH)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    rows = tower.look(pixels).packed()
    assert rows.shape == (3, tower.feature_width * (1 + 4))
    live, again = tower(pixels), tower(rows)
    assert torch.equal(again.whole, live.whole)
    assert torch.equal(again.features, live.features)
    assert torch.equal(again.parts.values, live.parts.values)
    assert torch.equal(again.parts.mask, live.parts.mask)


@pytest.mark.parametrize("parts", [ImageParts(), ImageParts(head="affine"), ImageParts(reduced=4)])
@pytest.mark.parametrize("locked", [False, True])
def test_gradients_of_parts_flow_where_the_tower_learns(parts, locked):
    tower = tower_of(VIT, parts=parts, locked=locked).train()
    tower(pixels()).parts.values[..., 0].sum().backward()
    learning = {name for name, p in tower.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    own = {name for name, _ in tower.named_parameters() if name.startswith("parts.")}
    assert own <= learning
    assert any(name.startswith("backbone.") for name in learning) != locked


def test_checkpointing_changes_no_gradient_of_parts():
    plain = tower_of(VIT).double()
    saving = ImageTower(replace(VIT, checkpointing=True), width=WIDTH).double()
    saving.load_state_dict(plain.state_dict())
    for tower in (plain, saving):
        tower.train()(pixels()).parts.values[..., 0].sum().backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_adapters_of_a_tower_with_parts_start_as_nothing_and_learn():
    plain, adapted = tower_of(VIT, pool="parts"), tower_of(VIT, pool="parts", lora=2)
    state = adapted.state_dict() | {k: v for k, v in plain.state_dict().items() if k in adapted.state_dict()}
    adapted.load_state_dict(state)
    torch.testing.assert_close(adapted(pixels()).parts.values, plain(pixels()).parts.values)
    adapted(pixels()).parts.values[..., 0].sum().backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None and "lora_B" in name}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"pool": "parts", "parts": None}, "none are asked for; set image.parts too"),
        ({"parts": ImageParts(stage=99)}, "has the maps 0 to .*, but its parts are to come from 99"),
        (
            {"name": "resnet50_clip", "size": 64, "head": "none"},
            "give them one of their own with image.parts.head=linear",
        ),
        ({"parts": ImageParts(stage=1), "patch_drop": 0.5}, "set patch_drop to 0"),
    ],
)
def test_parts_that_a_model_cannot_give_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        ImageTower(replace(VIT, **settings), width=WIDTH)


def test_pictures_of_another_size_and_vectors_are_refused():
    tower = tower_of(IMAGES["registers"])
    with pytest.raises(UserError, match="reads pictures of 32 x 32 pixels, but these have 48 x 48"):
        tower(pixels(48))
    with pytest.raises(UserError, match="features of whole pictures have no parts; give the tower pixels"):
        tower(torch.randn(2, tower.feature_width))
    with pytest.raises(UserError, match="gives one vector a picture and has no parts"):
        image_states(torch.randn(2, 8), prefix=0, channels_last=False)


def test_a_model_of_timm_goes_through_the_same_places_on_its_own():
    tower = tower_of(VIT)
    model = timm.create_model("test_vit", img_size=32, num_classes=0).eval()
    model.load_state_dict(tower.backbone.state_dict())
    with torch.no_grad():
        wanted = model.forward_features(scaled(tower, pixels()))[:, 1:]
        torch.testing.assert_close(tower.look(pixels()).parts.values, wanted)


def test_a_compiled_block_of_the_backbone_gives_the_same_parts():
    tower = tower_of(VIT)
    wanted = tower(pixels()).parts.values
    tower.backbone.blocks[0].compile(backend="eager")
    torch.testing.assert_close(tower(pixels()).parts.values, wanted)


# Texts.


def theirs(kind):
    """A model of transformers with a tower that has its weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 20, "eos_token_id": TOKENIZER.eos_id}
    if kind == "clip":
        return CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **sizes)).double().eval()
    return BertModel(BertConfig(layer_norm_eps=1e-5, **sizes), add_pooling_layer=False).double().eval()


def paired(kind, **fields):
    model = theirs(kind)
    tower = text_tower(name=kind, **fields)
    inner = model.state_dict()
    own = tower.backbone.state_dict()
    tower.backbone.load_state_dict({key: inner[key] for key in own})
    return model, tower


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_parts_of_a_text_are_the_states_of_its_tokens_through_the_head(kind):
    model, tower = paired(kind)
    tokens, mask = TOKENIZER(TEXTS)
    found = tower(tokens, mask)
    states = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    for row, real in enumerate(mask):
        wanted = normalize(tower.head(states[row][real]), dim=-1)
        torch.testing.assert_close(found.parts.values[row][real], wanted, rtol=1e-7, atol=1e-9)
    assert torch.equal(found.parts.mask, mask)
    assert not found.parts.values[~found.parts.mask].any()


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_the_last_layers_are_added_up_the_very_last_with_its_norm(kind):
    model, tower = paired(kind, parts=TextParts(layers=3, unit=False), head="none", pool="mean", width=32)
    tokens, mask = TOKENIZER(TEXTS)
    found = tower(tokens, mask)
    said = model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
    hidden = said.hidden_states
    # BERT norms each layer at its end; CLIP norms the sum of all once more behind the last.
    assert torch.equal(hidden[-1], said.last_hidden_state) == (kind == "bert")
    wanted = said.last_hidden_state + hidden[-2] + hidden[-3]
    for row, real in enumerate(mask):
        torch.testing.assert_close(found.parts.values[row][real], wanted[row][real], rtol=1e-7, atol=1e-9)
        mean = normalize(wanted[row][real].mean(0), dim=-1)
        torch.testing.assert_close(found.whole[row], mean, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("pool", ["default", "mean", "max"])
@pytest.mark.parametrize("name", ["clip", "bert"])
def test_asking_for_parts_leaves_the_whole_text_as_it_is(name, pool):
    asked, plain = text_tower(name=name, pool=pool), text_tower(name=name, pool=pool, parts=None)
    torch.testing.assert_close(asked(*TOKENIZER(TEXTS)).whole, plain(*TOKENIZER(TEXTS)).whole, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("marks", "left"), [("both", 0), ("start", 1), ("none", 2)])
def test_marks_are_parts_if_asked(marks, left):
    both, some = text_tower(), text_tower(parts=TextParts(marks=marks))
    tokens, mask = TOKENIZER(TEXTS)
    all_parts, kept = both(tokens, mask).parts, some(tokens, mask).parts
    first = 1 if marks == "none" else 0
    assert torch.equal(kept.mask.sum(1), mask.sum(1) - left)
    for row, count in enumerate(kept.mask.sum(1).tolist()):
        wanted = all_parts.values[row, first : first + count]
        torch.testing.assert_close(kept.values[row, :count], wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "parts", [TextParts(), TextParts(words=True, layers=2, marks="start"), TextParts(marks="none")]
)
@pytest.mark.parametrize("name", ["clip", "bert"])
def test_padding_and_company_change_no_part(name, parts):
    tower = text_tower(name=name, parts=parts)
    tokens, mask = TOKENIZER(TEXTS)
    together = tower(tokens, mask).parts
    for row, text in enumerate(TEXTS):
        alone = tower(*TOKENIZER([text])).parts
        count = int(alone.mask.sum())
        assert int(together.mask[row].sum()) == count
        torch.testing.assert_close(together.values[row, :count], alone.values[0, :count], rtol=1e-9, atol=1e-11)


def test_texts_in_groups_of_like_length_give_the_same_parts_and_gradients():
    tower = text_tower(parts=TextParts(words=True))
    texts = ["a red square", "two dogs"] * (LEAST_ROWS // 2) + [TEXTS[-1]]
    tokens, mask = TOKENIZER(texts)
    found = tower(tokens, mask)
    found.parts.values[..., 0].sum().backward()
    gradient = tower.head.weight.grad.clone()
    tower.zero_grad()
    halves = [tower(*TOKENIZER(texts[k : k + 8])) for k in range(0, len(texts), 8)]
    sum(half.parts.values[..., 0].sum() for half in halves).backward()
    torch.testing.assert_close(tower.head.weight.grad, gradient, rtol=1e-9, atol=1e-11)
    rows = [(half.parts, k) for half in halves for k in range(len(half.whole))]
    for row, (parts, k) in enumerate(rows):
        count = int(found.parts.mask[row].sum())
        assert int(parts.mask[k].sum()) == count
        torch.testing.assert_close(found.parts.values[row, :count], parts.values[k, :count], rtol=1e-9, atol=1e-11)


def test_pieces_of_a_word_are_added_up_as_gloria_does():
    tokenizer = load_tokenizer("chinese", context=24)
    settings = replace(TEXT, name="bert", context=24, head="none", pool="mean")
    tower = text_tower(
        settings, tokenizer=tokenizer, width=32, parts=TextParts(words=True, layers=2, marks="start", unit=False)
    )
    texts = ["enlarged cardiomediastinum, pleural effusions", "肺部 clear", "", "unremarkable " * 20]
    tokens, mask = tokenizer(texts)
    found = tower(tokens, mask)
    said = tower.backbone(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
    states = said[-1] + said[-2]
    assert any(entry.startswith("##") for entry in map(tokenizer.pieces.entries.__getitem__, tokens.flatten().tolist()))
    for row in range(len(texts)):
        entries = [tokenizer.pieces.entries[number] for number in tokens[row].tolist()]
        words, sentence = oracles.gloria_words(states[row].tolist(), entries)
        assert int(found.parts.mask[row].sum()) == len(words)
        values = found.parts.values[row, : len(words)]
        torch.testing.assert_close(values, torch.tensor(words, dtype=torch.float64), rtol=1e-9, atol=1e-11)
        direction = normalize(torch.tensor(sentence, dtype=torch.float64), dim=-1)
        torch.testing.assert_close(found.whole[row], direction, rtol=1e-9, atol=1e-11)


def test_room_is_padding_that_nothing_reads():
    plain, roomy = text_tower(pool="parts"), text_tower(pool="parts", parts=TextParts(room=20))
    one, other = plain(*TOKENIZER(TEXTS[:2])), roomy(*TOKENIZER(TEXTS[:2]))
    assert other.parts.mask.shape == (2, 20)
    size = one.parts.mask.shape[1]
    torch.testing.assert_close(other.parts.values[:, :size], one.parts.values)
    torch.testing.assert_close(other.whole, one.whole)
    assert not other.parts.mask[:, size:].any()


def test_no_text_gives_no_row_of_parts():
    tokens, mask = TOKENIZER([])
    found = text_tower()(tokens, mask)
    assert (len(found.whole), len(found.parts.values), len(found.parts.mask)) == (0, 0, 0)


@pytest.mark.parametrize("locked", [False, True])
def test_gradients_of_words_flow_where_the_tower_learns(locked):
    tower = text_tower(name="bert", locked=locked, parts=TextParts(words=True, layers=2, head="linear")).train()
    tower(*TOKENIZER(TEXTS)).parts.values[..., 0].sum().backward()
    assert tower.parts.head.weight.grad is not None
    reached = [p for p in tower.backbone.parameters() if p.grad is not None]
    assert bool(reached) != locked
    assert len(reached) == (0 if locked else len(list(tower.backbone.parameters())))


def test_checkpointed_texts_and_adapted_ones_have_the_same_parts():
    plain = text_tower(parts=TextParts(words=True, layers=2))
    for fields in ({"checkpointing": True}, {"lora": 2}):
        other = text_tower(parts=TextParts(words=True, layers=2), **fields)
        own = {k: v for k, v in plain.state_dict().items() if k in other.state_dict()}
        other.load_state_dict(other.state_dict() | own)
        found = other.train()(*TOKENIZER(TEXTS)).parts.values
        torch.testing.assert_close(found, plain(*TOKENIZER(TEXTS)).parts.values, rtol=1e-9, atol=1e-11)
        found[..., 0].sum().backward()


def test_a_copy_of_a_tower_has_parts_of_its_own():
    tower = text_tower()
    copy = deepcopy(tower)
    assert torch.equal(copy(*TOKENIZER(TEXTS)).parts.values, tower(*TOKENIZER(TEXTS)).parts.values)


def test_texts_without_what_their_parts_need_are_refused():
    sizes = {"vocab_size": TOKENIZER.vocab_size, "eos_id": TOKENIZER.eos_id, "pad_id": TOKENIZER.pad_id}
    with pytest.raises(UserError, match=r"give TextTower\(pieces=tokenizer.pieces\)"):
        TextTower(TEXT, width=8, **sizes)(*TOKENIZER(TEXTS))
    with pytest.raises(UserError, match="set text.parts too"):
        text_tower(pool="parts", parts=None)
    with pytest.raises(UserError, match="to add up 9 layers, but its model has 3"):
        text_tower(parts=TextParts(layers=9))


# Places and sums.


def test_a_row_of_padding_alone_has_no_part_and_counts_as_nothing():
    tokens, mask = torch.tensor([[1, 5, 2], [0, 0, 0]]), torch.tensor([[True] * 3, [False] * 3])
    places = part_places(tokens, mask, settings=TextParts(), pieces=TOKENIZER.pieces)
    assert places.tolist() == [[0, 1, 2], [-1, -1, -1]]
    states = torch.randn(2, 3, 4)
    states[1] = torch.nan
    parts = text_states(states, places)
    assert parts.mask.tolist() == [[True] * 3, [False] * 3]
    found = with_parts(mean_of(parts), Parts(values=parts.values, mask=parts.mask))
    assert found.features[1].tolist() == found.whole[1].tolist() == [0.0] * 4
    assert found.whole[0].norm() == pytest.approx(1)


@pytest.mark.parametrize(("marks", "count"), [("both", 2), ("start", 1), ("none", 0)])
def test_an_empty_text_has_its_marks_alone(marks, count):
    tokens, mask = TOKENIZER(["", "a red square"])
    for words in (False, True):
        places = part_places(tokens, mask, settings=TextParts(marks=marks, words=words), pieces=TOKENIZER.pieces)
        assert (places[0] >= 0).sum() == count
        parts = text_states(torch.ones(*places.shape, 3), places)
        assert parts.mask.sum(1).tolist() == [count, int(places[1].max()) + 1]


def test_sums_of_tokens_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 6, 2, generator=generator)
    places = torch.tensor([[0, 0, 1, 2, 2, 2], [-1, 0, 1, 1, -1, -1], [0, 1, 2, 3, 4, 5]])
    found = text_states(states, places)
    for row in range(3):
        for part in range(found.mask.shape[1]):
            own = [states[row, k] for k in range(6) if places[row, k] == part]
            assert bool(found.mask[row, part]) == bool(own)
            torch.testing.assert_close(found.values[row, part], sum(own, torch.zeros(2)))


def test_tokens_that_are_parts_one_by_one_are_not_copied():
    states, places = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [0, 1, -1]])
    assert text_states(states, places).values is states


# What parts say.


@cache
def pieces_of(kind, *, context=40):
    return TOKENIZER if kind == "train" else load_tokenizer(kind, context=context)


@pytest.mark.parametrize("kind", ["clip", "chinese"])
def test_words_are_shown_as_they_stand_in_the_text(kind):
    text = "Dogs, running on a <b>Café</b>"
    found = part_words(pieces_of(kind), text, settings=TextParts(words=True, marks="none"))
    assert [word.lower() for word in found][:4] == ["dogs", ",", "running", "on"]
    assert any(word.lower() == "café" for word in found)


def test_chinese_signs_are_shown_one_by_one_and_marks_by_their_names():
    found = part_words(pieces_of("chinese"), "红苹果", settings=TextParts())
    assert found == ("[CLS]", "红", "苹", "果", "[SEP]")
    assert part_words(pieces_of("chinese"), "", settings=TextParts(marks="start")) == ("[CLS]",)
    assert part_words(pieces_of("chinese"), "", settings=TextParts(marks="none")) == ()


@pytest.mark.parametrize("kind", ["clip", "chinese", "train"])
@pytest.mark.parametrize("settings", [TextParts(), TextParts(words=True), TextParts(words=True, marks="none")])
@pytest.mark.parametrize(
    "text", ["a red square", "😀 ﬁne Ａ１ café 红苹果", "", "two dogs, running " * 30, "a\u00a0b\u200bc &amp; d"]
)
def test_there_are_as_many_sayings_as_parts(kind, settings, text):
    tokenizer = pieces_of(kind, context=20)
    tokens, mask = tokenizer([text])
    places = part_places(tokens, mask, settings=settings, pieces=tokenizer.pieces)
    assert len(part_words(tokenizer, text, settings=settings)) == int(places.max()) + 1
    cleaned, spans = tokenizer.spans(text)
    assert len(spans) == int(mask.sum())
    assert all(0 <= start <= end <= len(cleaned) for start, end in spans)


def test_a_text_that_is_cut_shows_what_is_left_and_its_end():
    tokenizer = load_tokenizer("chinese", context=6)
    found = part_words(tokenizer, "红苹果在桌子上", settings=TextParts())
    assert found == ("[CLS]", "红", "苹", "果", "在", "[SEP]")


def test_a_text_whose_padding_is_read_has_parts_for_it_too():
    tokenizer = Tokenizer(
        TOKENIZER.inner, name="fixed", context=8, eos_id=2, pad_id=0, cleaning=TOKENIZER.cleaning, fixed=True
    )
    found = text_tower(replace(TEXT, name="siglip", fixed=True, context=8), tokenizer=tokenizer)(*tokenizer(["a red"]))
    assert found.parts.mask.all()
    assert found.parts.mask.shape == (1, 8)

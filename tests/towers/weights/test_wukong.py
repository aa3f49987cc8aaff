import pytest
import torch
from torch import nn
from torch.nn import functional as F

from checkpoint_cases import wrong_by_one
from original_towers import Swin, TextBlock, shake
from unicl.compare import scores
from unicl.data.image import Frame
from unicl.errors import UserError
from unicl.objective.terms import ContrastSettings
from unicl.published import load, model_of
from unicl.towers.parts import ImageParts, TextParts
from unicl.towers.weights import layouts, wukong
from unicl.towers.weights.checkpoint import open_checkpoint
from unicl.towers.weights.published import CLIP_MEAN, CLIP_STD

CONTEXT = 32
TEXTS = ["一张红苹果的照片", "豆娘", "", "an english text", "很长的一句话" * 9]


class Reduction(nn.Module):
    """Wukong's token reduction on a picture of tokens ``(N, side, side, D)`` (specification 4.3)."""

    def __init__(self, width, parts):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=8, bias=False), nn.Conv2d(width, parts, 1, bias=False)
        )
        self.feat_conv = nn.Conv2d(width, width, 1, groups=8, bias=False)

    def forward(self, picture):
        weights = self.attention_maps(self.norm(picture).movedim(3, 1)).flatten(2).softmax(2)
        return weights @ self.feat_conv(picture.movedim(3, 1)).flatten(2).mT


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(width, heads=width // 64, eps=1e-5) for _ in range(layers))

    def forward(self, states, mask=None):
        for block in self.resblocks:
            states = block(states, mask)
        return states


class Vit(nn.Module):
    """CLIP's vision transformer; ``(N, 3, 32, 32)`` to all projected tokens."""

    def __init__(self, width, out, parts):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(17, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, 2)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, out))
        if parts:
            self.token_reduction = Reduction(out, parts)

    def forward(self, pixels):
        places = self.conv1(pixels).flatten(2).mT
        first = self.class_embedding.expand(len(pixels), 1, -1)
        states = self.ln_pre(torch.cat([first, places], 1) + self.positional_embedding)
        tokens = self.ln_post(self.transformer(states)) @ self.proj
        return tokens[:, 0], tokens[:, 1:]


class SwinHead(nn.Module):
    """A Swin whose tokens go through one matrix with a bias; ``(N, 3, 56, 56)``."""

    def __init__(self, out, parts):
        super().__init__()
        for name, part in Swin(size=56, width=16, depths=(2, 1), heads=(2, 4), classes=out).named_children():
            self.add_module(name, part)
        if parts:
            self.token_reduction = Reduction(out, parts)

    def forward(self, pixels):
        tokens = self.patch_embed["norm"](self.patch_embed["proj"](pixels).flatten(2).mT)
        for layer in self.layers:
            for block in layer["blocks"]:
                tokens = block(tokens)
            tokens = layer["downsample"](tokens) if "downsample" in layer else tokens
        tokens = self.norm(tokens)
        return self.head(tokens.mean(1)), self.head(tokens)


class Texts(Transformer):
    """A causal transformer whose tables stand beside its blocks."""

    def __init__(self, width, out):
        super().__init__(width, 2)
        self.token_embedding = nn.Embedding(21_128, width)
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, out))

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        states = super().forward(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(states) @ self.text_projection


class Original(nn.Module):
    """The names and the numbers of Noah_WuKong, in small."""

    def __init__(self, *, swin=False, out=32, parts=0):
        super().__init__()
        self.visual = SwinHead(out, parts) if swin else Vit(64, out, parts)
        self.transformer = Texts(64, out)

    def images(self, pixels):
        """Unit vectors: whole, and of the tokens that are compared."""
        whole, tokens = self.visual(pixels)
        if hasattr(self.visual, "token_reduction"):
            side = round(tokens.shape[1] ** 0.5)
            tokens = self.visual.token_reduction(tokens.view(len(tokens), side, side, -1))
        return F.normalize(whole, dim=-1), F.normalize(tokens, dim=-1)

    def texts(self, ids):
        """The same; tokens of padding are 0."""
        states = F.normalize(self.transformer(ids), dim=-1)
        return states[torch.arange(len(ids)), (ids != 0).sum(1) - 1], states * (ids > 0)[..., None]


CASES = {
    "ViT, whole": {"out": 64},
    "ViT, token-wise": {},
    "ViT, reduced": {"parts": 3},
    "Swin, whole": {"swin": True, "out": 64},
    "Swin, token-wise": {"swin": True},
    "Swin, reduced": {"swin": True, "parts": 5},
}


def original(case):
    return shake(Original(**CASES[case]))


def opened(folder, model, *, old=True, scale=True):
    state = {k.replace("token_reduction", "token_learner") if old else k: v for k, v in model.state_dict().items()}
    more = {"loss.logit_scale": torch.tensor(3.0)} if scale else {}
    torch.save({"state_dict": state | more, "epoch": 1}, folder / "wukong.ckpt")
    return open_checkpoint(folder / "wukong.ckpt")


def pixels(case):
    side = 56 if "Swin" in case else 32
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, side, side), generator=generator, dtype=torch.uint8)


def normalised(images):
    return (images / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def ids_of(tokenizer):
    """Padded to the context with 0, as the released tokenizer does."""
    tokens, mask = tokenizer(TEXTS)
    return F.pad(tokens.where(mask, 0), (0, CONTEXT - tokens.shape[1]))


@pytest.mark.parametrize("case", [case for case in CASES if "whole" in case])
def test_a_model_of_whole_vectors_gives_the_originals(case, tmp_path):
    model = original(case)
    ours = model_of(wukong.read(opened(tmp_path, model)))
    with torch.no_grad():
        assert torch.allclose(ours.image(pixels(case)).whole, model.images(normalised(pixels(case)))[0], atol=1e-5)
        assert torch.allclose(ours.embed_text(TEXTS), model.texts(ids_of(ours.tokenizer))[0], atol=1e-5)
    assert ours.settings.image.parts is ours.settings.text.parts is None


@pytest.mark.parametrize("case", [case for case in CASES if "whole" not in case])
def test_a_token_wise_model_gives_the_originals_parts_and_scores(case, tmp_path):
    model = original(case)
    ours = model_of(wukong.read(opened(tmp_path, model)))
    images, texts = ours.encode_images(pixels(case)), ours.encode_texts(TEXTS)
    with torch.no_grad():
        image_tokens, text_tokens = model.images(normalised(pixels(case)))[1], model.texts(ids_of(ours.tokenizer))[1]
        best = torch.einsum("ipd,tqd->iptq", image_tokens, text_tokens).amax(3)
    assert torch.allclose(images.parts.values, image_tokens, atol=1e-5)
    assert torch.allclose(texts.parts.values, text_tokens, atol=1e-5)
    assert texts.parts.mask.shape == (len(TEXTS), CONTEXT)
    assert texts.parts.mask.sum(1).tolist() == [10, 4, 2, 5, CONTEXT]
    found, _ = scores(ours, images, texts, view="instances")
    assert torch.allclose(found, best.mean(1), atol=1e-5)
    # A text that fills its context has no padding that counts as 0, whoever it is compared beside.
    alone, _ = scores(ours, images, ours.encode_texts(TEXTS[1:2]), view="instances")
    assert torch.allclose(alone[:, 0], found[:, 1], atol=1e-6)


def test_what_is_compared_and_how_prompts_are_joined_is_the_released_codes(tmp_path):
    found = opened(tmp_path, original("ViT, reduced"))
    model = load(tmp_path / "wukong.ckpt")
    assert layouts.find(found) is wukong
    assert model.settings.image.parts == ImageParts(reduced=3)
    assert model.settings.text.parts == TextParts(room=CONTEXT)
    assert (model.settings.image.pool, model.settings.text.pool) == ("parts", "parts")
    assert model.settings.terms == (ContrastSettings(similarity="tokenwise", options={"pads": "zero"}),)
    assert model.settings.zero_shot.ensemble == "probabilities"
    assert model.settings.image.frame == Frame()
    assert (model.settings.text.context, model.tokenizer.pad_id, model.tokenizer.eos_id) == (CONTEXT, 0, 102)


@pytest.mark.parametrize("old", [True, False])
def test_both_names_of_the_reduction_are_read(old, tmp_path):
    model = original("ViT, reduced")
    state = wukong.read(opened(tmp_path, model, old=old)).state
    theirs = model.visual.token_reduction.state_dict()
    assert torch.equal(state["image.parts.reducer.change.weight"], theirs["feat_conv.weight"][..., 0])
    assert torch.equal(state["image.parts.reducer.weigh.1.weight"], theirs["attention_maps.1.weight"][..., 0])


@pytest.mark.parametrize(
    ("case", "origin", "note"),
    [
        ("ViT, whole", "whole vectors", "as wide as the text tower"),
        ("ViT, token-wise", "as FILIP", "token by token"),
        ("Swin, reduced", "reduced", "token by token"),
    ],
)
def test_the_kind_and_what_was_left_out_are_said(case, origin, note, tmp_path):
    published = wukong.read(opened(tmp_path, original(case)))
    assert origin in published.origin
    assert any(note in said for said in published.notes)
    assert any("loss.logit_scale" in said for said in published.notes)
    assert published.scale is None


def test_a_token_wise_model_is_saved_and_read_again(tmp_path):
    model = model_of(wukong.read(opened(tmp_path, original("ViT, reduced"))))
    model.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.settings == model.settings
    both = [scores(m, m.encode_images(pixels("ViT")), m.encode_texts(TEXTS), view="classes") for m in (model, again)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_another_vocabulary_is_refused(tmp_path):
    model = original("ViT, whole")
    model.transformer.token_embedding = nn.Embedding(100, 64)
    with pytest.raises(UserError, match=r"transformer\.token_embedding\.weight has 100 entries, in Wukong 21128"):
        wukong.read(opened(tmp_path, model))


@pytest.mark.parametrize("case", ["ViT, reduced", pytest.param("Swin, reduced", marks=pytest.mark.slow)])
def test_one_renamed_missing_or_reshaped_entry_is_named(case, tmp_path):
    found = opened(tmp_path, original(case))
    tried, wrong = wrong_by_one(found, wukong.read, spared=r".*(attn_mask|relative_position_index)|loss\.logit_scale")
    assert tried > 25
    assert not wrong, wrong

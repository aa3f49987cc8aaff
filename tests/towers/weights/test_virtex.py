import shutil
import unicodedata

import pytest
import sentencepiece
import torch
import torchvision
from PIL import Image
from torch import nn

import oracles
from checkpoint_cases import wrong_by_one
from original_towers import shake
from unicl.data.image import decode, fit
from unicl.errors import UserError
from unicl.published import load, model_of, read_published
from unicl.towers.weights import virtex
from unicl.towers.weights.checkpoint import Checkpoint, open_checkpoint
from unicl.towers.weights.published import wanted
from unicl.use.caption import Manner, caption
from virtex_cases import Textual, both


class Original(nn.Module):
    """VirTex's names around torchvision's own model; the part that writes captions is only names here."""

    def __init__(self):
        super().__init__()
        cnn = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
        cnn.fc = nn.Identity()
        self.visual = nn.ModuleDict({"cnn": cnn})
        self.textual = nn.ModuleDict({"output": nn.Linear(8, 40), "visual_projection": nn.Linear(2048, 8)})
        self.backward_textual = nn.ModuleDict({"output": self.textual["output"]})


def opened(folder):
    original = shake(Original())
    torch.save({"model": original.state_dict(), "iteration": 5}, folder / "checkpoint_5.pth")
    return original, open_checkpoint(folder / "checkpoint_5.pth")


def test_image_features_are_torchvisions(tmp_path):
    original, found = opened(tmp_path)
    published = virtex.read(found)
    ours = model_of(published)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.visual["cnn"]((pixels / 255 - ours.image.mean) / ours.image.std)
        assert torch.allclose(ours.image.features(pixels), expected, atol=1e-5, rtol=1e-4)
    assert virtex.recognises(found)
    assert (published.text, published.width, published.scale) == (None, 2048, None)


def test_what_writes_captions_is_left_out_and_said(tmp_path):
    notes = virtex.read(opened(tmp_path)[1]).notes
    assert any("left out 6" in note and "captions" in note for note in notes)


def test_one_renamed_missing_or_reshaped_entry_is_named(tmp_path):
    tried, wrong = wrong_by_one(opened(tmp_path)[1], virtex.read, spared=r"(backward_)?textual\..*")
    assert tried > 13
    assert not wrong, wrong


def test_the_published_size_has_the_published_count():
    published = virtex.read(open_meta())
    shapes = wanted(image=published.image, text=None, width=2048, scale=False)
    # 25,557,032 with the classifier of 1,000 classes (torchvision's documentation), less that.
    assert sum(value.numel() for key, value in shapes.items() if not counts(key)) == 23_508_032


def open_meta():
    with torch.device("meta"):
        cnn = torchvision.models.resnet50()
    cnn.fc = nn.Identity()
    return Checkpoint(place="resnet50", state={f"visual.cnn.{key}": value for key, value in cnn.state_dict().items()})


def counts(key):
    """Buffers of batch norms are no parameters."""
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def writer(*, backward):
    """The entries of what writes captions, and of an image tower beside it."""
    textual = shake(Textual(size=30, features=2048, width=128, layers=2, heads=2, context=7))
    parts = {"textual": textual} | ({"backward_textual": both(textual)} if backward else {})
    state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return Checkpoint(place="model.pth", state={"visual.cnn.conv1.weight": torch.zeros(1), **state})


@pytest.mark.parametrize("backward", [False, True])
def test_the_decoder_of_a_checkpoint_is_as_large_as_its_entries_say(backward):
    found = writer(backward=backward)
    decoder = virtex.decoder_of(found)
    assert (decoder.size, decoder.width, decoder.context) == (30, 128, 7)
    assert len(decoder.transformer.layer) == 2
    assert decoder.transformer.layer[0].attention.self.num_attention_heads == 2
    assert (decoder.backward_transformer is None) == (not backward)
    assert torch.equal(decoder.embedding.words.weight, found.state["textual.embedding.words.weight"])
    own = {key: v for key, v in found.state.items() if key.startswith("textual.") or "transformer" in key}
    tied = found.state["textual.output.weight"].numel()
    assert sum(p.numel() for p in decoder.parameters()) == sum(v.numel() for v in own.values()) - tied


def test_a_wrong_entry_of_the_decoder_is_named_and_a_model_without_one_too():
    tried, wrong = wrong_by_one(writer(backward=True), virtex.decoder_of, spared=r"visual.*|backward_textual\.(?!tr).*")
    assert tried > 30
    assert not wrong, wrong
    with pytest.raises(UserError, match="has no decoder"):
        virtex.decoder_of(open_meta())


WORDS = (
    *("a", "the", "man", "woman", "dog", "cat", "red", "green", "blue", "square", "circle", "table", "black", "white"),
    *("rides", "horse", "über", "café", "two"),
)
TEXTS = ("A red dog rides", "the Man, two cafés", "über  the TABLE", "", "a [weird] dog's hat")
CONTEXT = 9


class Writer(Original):
    """What a checkpoint of bicaptioning holds, small."""

    def __init__(self, size):
        super().__init__()
        self.textual = Textual(size=size, features=2048, width=64, layers=1, heads=1, context=CONTEXT)
        self.backward_textual = both(self.textual)

    def next_log_p(self, places, text):
        tokens = torch.tensor([text])
        return self.textual(tokens, torch.tensor([len(text)]), places)[0, -1].log_softmax(-1).tolist()

    @torch.no_grad()
    def places(self, pixels):
        cnn = self.visual["cnn"]
        states = cnn.maxpool(cnn.relu(cnn.bn1(cnn.conv1(pixels))))
        return cnn.layer4(cnn.layer3(cnn.layer2(cnn.layer1(states)))).flatten(2).mT


def trained(folder, name, *, size):
    """A tokenizer as VirTex's script makes one."""
    (folder / "captions.txt").write_text("\n".join(" ".join(WORDS[k:] + WORDS[:k]) for k in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "captions.txt"),
        model_prefix=str(folder / name),
        model_type="bpe",
        character_coverage=1.0,
        vocab_size=size,
        bos_id=-1,
        eos_id=-1,
        control_symbols="[SOS],[EOS],[MASK]",
        minloglevel=2,
    )
    (folder / "captions.txt").unlink()
    (folder / f"{name}.vocab").unlink()
    return folder / f"{name}.model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint with its tokenizer beside it, and the modules that it was made of."""
    folder = tmp_path_factory.mktemp("virtex")
    pieces = trained(folder, "coco_10k", size=90)
    torch.manual_seed(0)
    original = shake(Writer(90)).eval()
    with torch.no_grad():
        original.textual.visual_projection.weight.mul_(20)
    torch.save({"model": original.state_dict(), "iteration": 5}, folder / "model.pth")
    Image.radial_gradient("L").resize((300, 260)).save(folder / "a.png")
    Image.linear_gradient("L").convert("RGB").save(folder / "b.png")
    return original, folder, sentencepiece.SentencePieceProcessor(model_file=str(pieces))


@pytest.fixture(scope="module")
def model(whole):
    """The checkpoint as a user reads it."""
    return load(whole[1] / "model.pth")


def plain(text):
    """VirTex's NormalizeCaption."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))


def test_texts_become_the_tokens_of_the_released_code(whole, model):
    _, _, processor = whole
    tokens, mask = model.tokenizer(TEXTS)
    wanted = [[1, *processor.encode(plain(text)), 2] for text in TEXTS]
    cut = [row if len(row) <= CONTEXT else [*row[: CONTEXT - 1], 2] for row in wanted]
    assert [row[own].tolist() for row, own in zip(tokens, mask, strict=True)] == cut
    assert any(len(row) > CONTEXT for row in wanted)
    assert not tokens[~mask].any()


@pytest.mark.parametrize("repeats", [True, False])
def test_a_checkpoint_beside_its_tokenizer_writes_the_captions_of_the_released_modules(whole, model, repeats):
    original, folder, processor = whole
    words = model.objective.terms["captions"].words
    assert (words.size, words.pad, words.start, words.end, words.mask, words.context) == (90, 0, 1, 2, 3, CONTEXT)
    found = caption(model, [folder / "a.png", folder / "b.png"], manner=Manner(beams=2, repeats=repeats))
    assert len({row.caption for row in found.rows}) == 2
    for row in found.rows:
        [pixels] = [each.float() / 255 for each in fitted(model, row.image)]
        places = original.places((pixels[None] - model.image.mean) / model.image.std)
        with torch.no_grad():
            tokens, score = oracles.likeliest_text(
                lambda text, own=places: original.next_log_p(own, text),
                beams=2,
                most=CONTEXT,
                start=1,
                end=2,
                never={0, 1, 3},
                repeats=repeats,
            )
        assert row.caption == processor.decode(list(tokens)).strip()
        assert row.score == pytest.approx(score, abs=1e-3)


def fitted(model, path):
    return [fit(decode(path), size=model.settings.image.size, frame=model.settings.image.frame)]


def test_the_tokenizer_is_the_one_that_is_named_or_the_only_one_that_fits(whole, model, tmp_path):
    _, folder, _ = whole
    other = trained(tmp_path, "other", size=70)
    shutil.copy(folder / "model.pth", tmp_path / "model.pth")
    (tmp_path / "broken.model").write_bytes(b"nothing")
    alone = load(tmp_path / "model.pth")
    assert (alone.tokenizer, alone.settings.terms, alone.settings.image.parts) == (None, (), None)
    with pytest.raises(UserError, match=r"no term that writes captions.*--tokenizer coco_10k.model"):
        caption(alone, [folder / "a.png"])
    named = read_published(tmp_path / "model.pth", tokenizer=folder / "coco_10k.model")
    assert torch.equal(named.tokenizer(TEXTS)[0], model.tokenizer(TEXTS)[0])
    with pytest.raises(UserError, match="has 70 entries, but the decoder writes with 90"):
        load(tmp_path / "model.pth", tokenizer=other)
    with pytest.raises(UserError, match=r"'nowhere.model' does not exist; give the file .* coco_10k.model"):
        load(tmp_path / "model.pth", tokenizer="nowhere.model")
    with pytest.raises(UserError, match="model.pth' is no SentencePiece model"):
        load(tmp_path / "model.pth", tokenizer=tmp_path / "model.pth")
    for name in ("one", "two"):
        shutil.copy(folder / "coco_10k.model", tmp_path / f"{name}.model")
    assert read_published(tmp_path / "model.pth").tokenizer is None


def test_a_model_that_writes_is_saved_and_read_again(whole, model, tmp_path):
    _, folder, _ = whole
    model.save(tmp_path / "saved")
    manner = Manner(beams=2)
    first, again = (caption(each, [folder / "a.png"], manner=manner) for each in (model, load(tmp_path / "saved")))
    assert first.rows == again.rows
    with pytest.raises(UserError, match="brings its own tokenizer"):
        load(tmp_path / "saved", tokenizer=folder / "coco_10k.model")


def test_a_tokenizer_for_a_model_that_needs_none_is_refused(whole, tmp_path):
    _, folder, _ = whole
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="needs no tokenizer beside it"):
        load(tmp_path / "resnet18.pth", tokenizer=folder / "coco_10k.model")
    image = {key: value for key, value in torch.load(folder / "model.pth")["model"].items() if "textual" not in key}
    torch.save(image, tmp_path / "tower.pth")
    with pytest.raises(UserError, match="has no decoder of VirTex's"):
        load(tmp_path / "tower.pth", tokenizer=folder / "coco_10k.model")

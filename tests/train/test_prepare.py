from dataclasses import replace

import pytest
import torch
from torch import nn

from tiny import tiny, write_photos
from unicl.data.sources import load_all
from unicl.errors import UserError
from unicl.model import load_model
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.compute import ComputeSettings
from unicl.train.optim import OptimSettings
from unicl.train.prepare import _blocks, prepare

COMPILED = ComputeSettings(compile=True)


def made(folder, *, tower="test_efficientnet", **image):
    recipe = tiny("clip", tower=tower)
    recipe = replace(recipe, image=replace(recipe.image, **image))
    tokenizer = build_tokenizer(recipe.text, texts=["a red square number 1"])
    return build_model(recipe, load_all(list(write_photos(folder, each=1))), tokenizer=tokenizer).train()


def prepared(model, compute=ComputeSettings(), *, precision="fp32", **optim):
    return prepare(model, compute, optim=OptimSettings(**optim), precision=precision)


def pixels(rows=4):
    return torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def gradients(model):
    model.zero_grad()
    texts = model.tokenizer(["a red square", "red", "a square number 1", "number"])
    (model.image(pixels()).whole * model.text(*texts).whole).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tower", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"])
def test_channels_last_gives_the_same_numbers_and_files(tmp_path, tower):
    plain, inner = (made(tmp_path / name, tower=tower).double() for name in ("plain", "inner"))
    prepared(plain, ComputeSettings(channels_last=False))
    prepared(inner, ComputeSettings(channels_last=True))
    convolutional = tower != "test_vit"
    laid_out = any(not p.is_contiguous() for p in inner.parameters())
    assert (inner.image.channels_last, laid_out) == (convolutional, convolutional)
    assert all(p.is_contiguous() for p in plain.parameters())
    wanted = gradients(plain)
    for name, gradient in gradients(inner).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-10, msg=name)
    inner.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert all(p.is_contiguous() for p in again.parameters())
    for name, value in inner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.float()), name


def test_shards_keep_the_layout_of_weights_and_let_pixels_have_theirs(tmp_path):
    model = made(tmp_path)
    prepared(model, ComputeSettings(parallel="fsdp"))
    assert model.image.channels_last
    assert all(p.is_contiguous() for p in model.parameters())
    assert not model.text.keeps


def test_halved_weights_train_and_are_used_without_asking(tmp_path):
    model = made(tmp_path)
    before = model.embed_image(pixels())
    assert prepared(model, precision="bf16", weights="bf16") == ()
    assert {p.dtype for p in model.objective.parameters()} == {torch.float32}
    matrices = [p for tower in (model.image, model.text) for p in tower.parameters() if p.ndim >= 2]
    assert {p.dtype for p in matrices} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    model.save(tmp_path / "saved")
    fresh = load_model(tmp_path / "saved")
    assert {p.dtype for p in fresh.parameters()} == {torch.float32}
    torch.testing.assert_close(model.eval().embed_image(pixels()), fresh.embed_image(pixels()), rtol=0.1, atol=0.05)
    assert before.dtype == torch.float32


@pytest.mark.parametrize(
    ("compute", "precision", "reason"),
    [
        (ComputeSettings(), "fp32", "add --precision bf16"),
        (ComputeSettings(parallel="fsdp"), "bf16", "do not go with --parallel fsdp"),
    ],
)
def test_halved_weights_are_refused_where_they_do_not_work(tmp_path, compute, precision, reason):
    with pytest.raises(UserError, match=reason):
        prepared(made(tmp_path), compute, precision=precision, weights="bf16")


def test_the_blocks_of_transformers_are_compiled_one_by_one_and_other_models_whole():
    def kinds(name):
        import timm

        return [type(block).__name__ for block in _blocks(timm.create_model(name, num_classes=0))]

    assert kinds("test_vit") == ["Block"] * 6
    assert kinds("test_resnet") == ["ResNet"]


@pytest.mark.slow
def test_without_a_compiler_a_note_says_so_and_nothing_is_compiled(tmp_path):
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    model = made(tmp_path, tower="test_vit")
    with inductor.patch({"cpp.cxx": (None, "/nowhere/c++")}):
        (note,) = prepared(model, COMPILED)
    assert "no effect" in note
    assert "compiler" in note
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_towers_keep_their_names_and_numbers_whatever_the_length_of_texts(tmp_path, checkpointing):
    model = made(tmp_path, tower="test_vit", checkpointing=checkpointing)
    names, wanted = list(model.state_dict()), gradients(model)
    (note,) = prepared(model, COMPILED)
    if "no effect" in note:
        pytest.skip(note)
    assert list(model.state_dict()) == names
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    torch._dynamo.utils.counters.clear()
    for length in (3, 5, 8):
        tokens = torch.randint(3, 60, (4, length))
        model.text(tokens, torch.ones_like(tokens, dtype=torch.bool)).whole.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1
    assert not torch._dynamo.utils.counters["graph_break"]


class Bytes:
    """How much a forward pass keeps for the backward pass."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def pack(self, tensor):
        if not isinstance(tensor, nn.Parameter):
            self.count += tensor.nbytes
        return tensor


def test_checkpointing_and_patch_dropout_keep_less_for_the_backward_pass(tmp_path):
    def kept(name, **image):
        model = made(tmp_path / name, tower="test_vit", size=64, **image)
        with Bytes() as saved:
            model.image(torch.zeros(8, 3, 64, 64, dtype=torch.uint8))
        return saved.count

    plain = kept("plain")
    assert kept("checkpointing", checkpointing=True) < 0.5 * plain
    assert kept("patches", patch_drop=0.5) < 0.75 * plain


def test_text_checkpointing_keeps_less_for_the_backward_pass(tmp_path):
    recipe, found = tiny("clip", tower="test_vit"), []
    photos = load_all(list(write_photos(tmp_path, each=1)))
    for checkpointing in (False, True):
        text = replace(recipe.text, layers=4, checkpointing=checkpointing)
        tokenizer = build_tokenizer(text, texts=["a red square number 1"])
        model = build_model(replace(recipe, text=text), photos, tokenizer=tokenizer).train()
        with Bytes() as saved:
            model.text(*tokenizer(["a red square number 1"] * 8))
        found.append(saved.count)
    assert found[1] < 0.6 * found[0]

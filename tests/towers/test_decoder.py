import pytest
import torch

from unicl.errors import UserError
from unicl.space import Parts
from unicl.towers.decoder import Decoder, turned
from unicl.towers.weights.checkpoint import Checkpoint
from unicl.towers.weights.virtex import decoder_of
from virtex_cases import Textual, both

SIZE, FEATURES, WIDTH, CONTEXT = 40, 12, 16, 9
SIZES = {"size": SIZE, "features": FEATURES, "width": WIDTH, "context": CONTEXT, "layers": 2, "heads": 4}


def decoder(**more):
    torch.manual_seed(0)
    return Decoder(pad=0, **(SIZES | more)).double().eval()


def texts(*lengths, seed=1):
    """Words between marks 1 and 2, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(4, SIZE, mask.shape, generator=generator)
    tokens[:, 0] = 1
    tokens[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 2
    return tokens * mask, mask


def places(rows, number=5):
    values = torch.randn(rows, number, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return Parts(values=values, mask=torch.ones(rows, number, dtype=torch.bool))


@pytest.mark.parametrize("causal", [True, False])
def test_the_decoder_is_torchs_with_the_same_weights_in_values_and_gradients(causal):
    torch.manual_seed(3)
    original = Textual(**SIZES, causal=causal).eval()
    backward = both(original).eval()
    state = {f"textual.{key}": value for key, value in original.state_dict().items()}
    state |= {f"backward_textual.{key}": value for key, value in backward.state_dict().items()}
    ours = decoder_of(Checkpoint(place="model.pth", state=state), heads=4, causal=causal).double()
    backward.double()
    original.double()
    (tokens, mask), seen = texts(7, 4, 6), places(3)
    wanted = original(tokens, mask.sum(1), seen.values)[mask]
    found = ours(tokens, mask, seen)[mask]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    other = ours(turned(tokens, mask), mask, seen, direction="backward")
    torch.testing.assert_close(other[mask], backward(turned(tokens, mask), mask.sum(1), seen.values)[mask])
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()
    (found * weights).sum().backward()
    words = original.embedding.words.weight.grad
    torch.testing.assert_close(ours.embedding.words.weight.grad, words, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours.projection.weight.grad, original.visual_projection.weight.grad)
    query = original.transformer.layers[1].self_attn.in_proj_weight.grad[:WIDTH]
    torch.testing.assert_close(ours.transformer.layer[1].attention.self.query.weight.grad, query)


def test_dropout_is_where_torch_has_it():
    ours, original = decoder(dropout=0.3).train(), Textual(**SIZES, dropout=0.3)
    number = sum(isinstance(m, torch.nn.Dropout) and m.p == 0.3 for m in ours.transformer.modules())
    theirs = sum(isinstance(m, torch.nn.Dropout) and m.p == 0.3 for m in original.transformer.modules())
    # torch's two attentions of a layer drop without a module of their own.
    assert number == theirs + 2 * SIZES["layers"]
    (tokens, mask), seen = texts(7), places(1)
    assert not torch.equal(ours(tokens, mask, seen), ours(tokens, mask, seen))


def test_no_token_sees_one_behind_it_and_without_causality_all_do():
    (tokens, mask), seen = texts(8, 8), places(2)
    other = tokens.clone()
    other[:, 5] = (tokens[:, 5] + 1) % SIZE
    before, after = (decoder()(each, mask, seen) for each in (tokens, other))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()
    before, after = (decoder(causal=False)(each, mask, seen) for each in (tokens, other))
    assert not torch.isclose(before, after).all(-1).any()


@pytest.mark.parametrize("causal", [True, False])
def test_padding_and_what_stands_there_change_nothing(causal):
    model, (tokens, mask), seen = decoder(causal=causal), texts(7, 4), places(2)
    alone = model(tokens[1:, :4], mask[1:, :4], seen.select(slice(1, 2)))[0]
    torch.testing.assert_close(model(tokens, mask, seen)[1, :4], alone)
    torch.testing.assert_close(model(tokens.masked_fill(~mask, 7), mask, seen)[mask], model(tokens, mask, seen)[mask])
    assert torch.isfinite(model(tokens, mask & False, seen)).all()


def test_the_backward_direction_adds_one_transformer_and_begins_as_the_forward_one():
    one, two = decoder(), decoder(both=True)
    added = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert added == sum(p.numel() for p in one.transformer.parameters())
    shared = {"projection", "embedding", "bias"}
    assert {name.partition(".")[0] for name, _ in two.named_parameters()} == {
        *shared,
        "transformer",
        "backward_transformer",
    }
    assert not {id(p) for p in two.transformer.parameters()} & {id(p) for p in two.backward_transformer.parameters()}
    (tokens, mask), seen = texts(7, 4, 6), places(3)
    flipped = turned(tokens, mask)
    assert torch.equal(two(flipped, mask, seen, direction="backward"), two(flipped, mask, seen))
    with pytest.raises(UserError, match="one direction"):
        one(flipped, mask, seen, direction="backward")


def test_both_directions_and_the_output_teach_one_embedding():
    model, (tokens, mask), seen = decoder(both=True), texts(6, 5), places(2)
    grads = []
    for ways in (("forward",), ("backward",), ("forward", "backward")):
        model.zero_grad()
        sum(model(tokens, mask, seen, direction=way).square().sum() for way in ways).backward()
        grads.append([model.embedding.words.weight.grad, model.projection.weight.grad, model.bias.grad])
    for first, second, together in zip(*grads, strict=True):
        torch.testing.assert_close(first + second, together)
    # Words that no text has learn through the output alone.
    unseen = [k for k in range(SIZE) if k not in tokens]
    assert grads[0][0][unseen].abs().sum() > 0


def test_texts_are_turned_around_marks_and_all_and_twice_is_the_same():
    tokens, mask = torch.tensor([[1, 5, 6, 2, 0], [1, 2, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    flipped = turned(tokens, mask.bool())
    assert flipped.tolist() == [[2, 6, 5, 1, 0], [2, 1, 0, 0, 0]]
    assert torch.equal(turned(flipped, mask.bool()), tokens)


def test_words_are_written_one_by_one_as_they_are_read_at_once():
    model, (tokens, mask), seen = decoder(both=True), texts(8, 8), places(2)
    for direction in ("forward", "backward"):
        past = model.begin(seen)
        steps = [model.step(tokens[:, k], past, direction=direction) for k in range(4)]
        whole = model(tokens, mask, seen, direction=direction)
        torch.testing.assert_close(torch.stack(steps, 1), whole[:, :4])
        past.take(torch.tensor([1, 1, 0]))
        torch.testing.assert_close(model.step(tokens[[1, 1, 0], 4], past, direction=direction), whole[[1, 1, 0], 4])


def test_texts_beyond_the_context_and_widths_that_cannot_be_cut_are_errors():
    model, seen = decoder(), places(1)
    tokens, mask = texts(CONTEXT + 1)
    with pytest.raises(UserError, match="10 tokens.*made for 9"):
        model(tokens, mask, seen)
    past = model.begin(seen)
    for _ in range(CONTEXT):
        model.step(tokens[:, 0], past)
    with pytest.raises(UserError, match="9 tokens at most"):
        model.step(tokens[:, 0], past)
    with pytest.raises(UserError, match="width 100 cannot be cut into 3 heads"):
        decoder(width=100, heads=3)


def test_matrices_begin_with_a_spread_of_two_hundredths_and_pads_at_zero():
    model = decoder(width=64, heads=None)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.numel() > 4000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert not model.embedding.words.weight[0].any()
    assert model.transformer.layer[0].attention.self.num_attention_heads == 1
    assert (model.embedding.norm.eps, model.transformer.layer[0].output.LayerNorm.eps) == (1e-8, 1e-5)

"""Texts written by a small decoder, against every text that there is."""

import itertools

import pytest
import torch

import oracles
from unicl.errors import UserError
from unicl.objective.words import Words
from unicl.space import Parts
from unicl.towers.decoder import Decoder
from unicl.use.generate import Written, beam_search, draws_for, nucleus

PAD, START, END, MASK = 0, 1, 2, 6
WORDS = Words(size=7, pad=PAD, start=START, end=END, mask=MASK, context=5)
MOST = 4


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    made = Decoder(size=7, pad=PAD, features=5, width=16, context=5, heads=2).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.9)
    return made


@pytest.fixture(scope="module")
def places():
    values = 2 * torch.randn(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return Parts(values=values, mask=torch.ones(6, 4, dtype=torch.bool))


def log_p(decoder, places, text):
    """Of a text and its end, or of one that was cut at the most tokens."""
    tokens = torch.tensor([[START, *text]])
    scores = decoder(tokens, torch.ones_like(tokens, dtype=torch.bool), places)[0].log_softmax(-1)
    follows = [*text, END] if len(text) < MOST else text
    return sum(scores[k, token].item() for k, token in enumerate(follows))


def every_text():
    """One to three words and an end, or four words."""
    return [text for n in range(1, MOST + 1) for text in itertools.product((3, 4, 5), repeat=n)]


def counted(text):
    return min(len(text) + 1, MOST)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_beam_that_is_wide_enough_finds_the_best_of_all_texts(decoder, places, normalise):
    found = beam_search(decoder, places, words=WORDS, beams=150, most=MOST, normalise=normalise)
    assert len({each.tokens for each in found}) > 1
    for k, each in enumerate(found):
        own = places.select([k])
        scores = {text: log_p(decoder, own, text) for text in every_text()}
        ranked = {text: score / (counted(text) if normalise else 1) for text, score in scores.items()}
        best = max(ranked, key=ranked.get)
        assert each.tokens == best
        assert each.score == pytest.approx(scores[best], rel=1e-9)


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_beams_and_the_rule_against_a_repeated_token_are_those_of_a_plain_loop(decoder, places, beams, repeats):
    found = beam_search(decoder, places, words=WORDS, beams=beams, most=MOST, repeats=repeats)
    for k, each in enumerate(found):
        tokens, score = oracles.likeliest_text(
            lambda text, own=places.select([k]): next_log_p(decoder, own, text),
            beams=beams,
            most=MOST,
            start=START,
            end=END,
            never={PAD, START, MASK},
            repeats=repeats,
        )
        assert each.tokens == tokens
        assert each.score == pytest.approx(score, rel=1e-9)
    again = any(one == other for each in found for one, other in itertools.pairwise(each.tokens))
    assert again == repeats


def next_log_p(decoder, places, text):
    """Nothing is kept from step to step."""
    tokens = torch.tensor([text])
    return decoder(tokens, torch.ones_like(tokens, dtype=torch.bool), places)[0, -1].log_softmax(-1).tolist()


def test_a_nucleus_too_draws_no_token_right_behind_itself(decoder, places):
    many, draws = places.select([k % 6 for k in range(120)]), draws_for([str(k) for k in range(120)], seed=0, most=MOST)
    free, bound = (
        [each.tokens for each in nucleus(decoder, many, words=WORDS, draws=draws, share=0.9, repeats=repeats)]
        for repeats in (True, False)
    )
    assert any(one == other for text in free for one, other in itertools.pairwise(text))
    assert not any(one == other for text in bound for one, other in itertools.pairwise(text))
    assert {len(text) for text in bound} == {1, 2, 3, 4}


def greedy(decoder, places):
    text = []
    while len(text) < MOST:
        tokens = torch.tensor([[START, *text]])
        scores = decoder(tokens, torch.ones_like(tokens, dtype=torch.bool), places)[0, -1]
        allowed = [3, 4, 5, *([END] if text else [])]
        best = max(allowed, key=lambda token: scores[token].item())
        if best == END:
            break
        text.append(best)
    return tuple(text)


def test_one_beam_and_a_nucleus_of_nothing_take_the_likeliest_token_each_time(decoder, places):
    wanted = [greedy(decoder, places.select([k])) for k in range(6)]
    narrow = beam_search(decoder, places, words=WORDS, beams=1, most=MOST)
    drawn = nucleus(decoder, places, words=WORDS, draws=draws_for("abcdef", seed=0, most=MOST), share=1e-12)
    assert [each.tokens for each in narrow] == [each.tokens for each in drawn] == wanted
    for one, other in zip(narrow, drawn, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-9)


def test_more_beams_never_end_on_a_less_likely_text_here_and_pictures_do_not_meet(decoder, places):
    together = beam_search(decoder, places, words=WORDS, beams=3, most=MOST)
    apart = [beam_search(decoder, places.select([k]), words=WORDS, beams=3, most=MOST)[0] for k in range(6)]
    assert [each.tokens for each in together] == [each.tokens for each in apart]
    narrow = beam_search(decoder, places, words=WORDS, beams=1, most=MOST)
    assert all(wide.score >= one.score - 1e-9 for wide, one in zip(together, narrow, strict=True))


def test_draws_are_those_of_a_picture_and_a_seed_whatever_it_comes_with(decoder, places):
    names = [f"photos/{k}.png" for k in range(6)]

    def write(rows, seed):
        draws = draws_for([names[k] for k in rows], seed=seed, most=MOST)
        return nucleus(decoder, places.select(rows), words=WORDS, draws=draws, share=0.9)

    assert write(list(range(6)), 1) == write(list(range(6)), 1) != write(list(range(6)), 2)
    alone = write([4], 1)[0]
    assert alone.tokens == write(list(range(6)), 1)[4].tokens


def test_draws_follow_the_probabilities_inside_the_nucleus(decoder, places):
    one = places.select([0])
    tokens = torch.tensor([[START]])
    chances = decoder(tokens, torch.ones_like(tokens, dtype=torch.bool), one)[0, -1].softmax(-1)
    inner = {token: chances[token].item() for token in (3, 4, 5)}
    whole = sum(inner.values())
    ranked = sorted(inner, key=inner.get, reverse=True)
    kept = [ranked[0]]
    while sum(inner[token] for token in kept) / whole < 0.9:
        kept.append(ranked[len(kept)])
    draws = (torch.arange(2000) + 0.5)[:, None] / 2000
    found = nucleus(decoder, one.select([0] * 2000), words=WORDS, draws=draws, share=0.9)
    shares = {token: sum(each.tokens == (token,) for each in found) / 2000 for token in (3, 4, 5)}
    room = sum(inner[token] for token in kept)
    assert shares == pytest.approx({t: inner[t] / room if t in kept else 0.0 for t in (3, 4, 5)}, abs=1e-3)


def test_marks_are_never_written(decoder, places):
    draws = draws_for([str(k) for k in range(300)], seed=0, most=MOST)
    found = nucleus(decoder, places.select([k % 6 for k in range(300)]), words=WORDS, draws=draws, share=1.0)
    assert {token for each in found for token in each.tokens} <= {3, 4, 5}
    assert all(1 <= len(each.tokens) <= MOST for each in found)
    assert {len(each.tokens) for each in found} == {1, 2, 3, 4}


def test_no_pictures_have_no_texts_and_a_share_must_be_one(decoder, places):
    none = places.select([])
    assert beam_search(decoder, none, words=WORDS) == []
    assert nucleus(decoder, none, words=WORDS, draws=draws_for([], seed=0, most=3)) == []
    for share in (0.0, -1.0, 1.1):
        with pytest.raises(UserError, match="such as 0.9"):
            nucleus(decoder, places, words=WORDS, draws=draws_for("abcdef", seed=0, most=2), share=share)


def test_what_is_written_is_a_value():
    assert Written(tokens=(3,), score=-1.0) == Written(tokens=(3,), score=-1.0)

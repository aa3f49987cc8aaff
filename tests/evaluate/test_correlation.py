import pytest
import torch
from scipy.stats import spearmanr

from evaluate_oracles import rank_correlation
from unicl.evaluate.bootstrap import Bootstrap
from unicl.evaluate.correlation import correlations, drawn_correlations, spearman


def some(rows, columns, *, seed, levels=None):
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    return torch.randint(levels, (rows, columns), generator=generator).double()


def test_correlations_are_scipys_and_those_of_plain_loops_with_ties():
    left, right = some(6, 40, seed=0, levels=7), some(6, 40, seed=1, levels=5)
    found = spearman(left, right)
    for row in range(6):
        assert float(found[row]) == pytest.approx(spearmanr(left[row], right[row]).statistic, abs=1e-12)
        assert float(found[row]) == pytest.approx(rank_correlation(left[row].tolist(), right[row].tolist()), abs=1e-12)


def test_known_answers():
    ordered = torch.tensor([[1.0, 2, 3, 4]])
    assert spearman(ordered, ordered**3).tolist() == [1.0]
    assert spearman(ordered, -ordered).tolist() == [-1.0]
    assert float(spearman(ordered, torch.tensor([[1.0, 3, 2, 4]]))[0]) == pytest.approx(0.8)
    assert spearman(ordered, torch.ones(1, 4)).isnan().all()


def test_scores_that_agree_with_the_ratings_have_one_in_every_draw():
    ratings = some(1, 200, seed=2)[0] * 5
    found = drawn_correlations(ratings.exp(), ratings, queries_N=torch.arange(200) % 40)
    assert found.shape == (1000,)
    assert torch.allclose(found, torch.ones(1000, dtype=torch.float64))


def test_draws_are_those_of_their_seed():
    scores, ratings, queries = some(1, 90, seed=3)[0], some(1, 90, seed=4)[0], torch.arange(90) % 30
    first, again, other = (drawn_correlations(scores, ratings, queries_N=queries, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_draw_takes_half_of_the_queries_and_one_pair_of_each():
    # The score of a pair names it, so that a draw of two queries and their ratings tells what was drawn.
    queries = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
    ratings = torch.tensor([0.0, 0, 0, 1, 2, 2, 3, 3])
    found = drawn_correlations(ratings, ratings, queries_N=queries, draws=4000)
    # Half of four queries are two, drawn with replacement: a quarter of the draws has one query twice, and no order.
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert set(found.tolist()) <= {0.0, 1.0}


def test_a_query_with_many_pairs_counts_no_more_than_one_with_few():
    crowd, rest = 500, 20
    queries = torch.cat([torch.zeros(crowd, dtype=torch.int64), 1 + torch.arange(rest)])
    ratings = torch.cat([torch.rand(crowd), torch.arange(rest) / 4]).double()
    scores = torch.cat([-ratings[:crowd], ratings[crowd:]])
    drawn = drawn_correlations(scores, ratings, queries_N=queries)
    assert float(drawn.mean()) > 0.8
    assert rank_correlation(scores.tolist(), ratings.tolist()) < 0.2


def test_the_mean_over_draws_is_that_of_plain_loops():
    import random

    queries = [k % 12 for k in range(48)]
    scores, ratings = some(1, 48, seed=5)[0], some(1, 48, seed=5)[0] + 0.6 * some(1, 48, seed=6)[0]
    found = drawn_correlations(scores, ratings, queries_N=torch.tensor(queries), draws=3000)
    of = [[k for k, q in enumerate(queries) if q == query] for query in range(12)]
    dice, wanted = random.Random(0), []
    for _ in range(3000):
        picked = [dice.choice(of[dice.randrange(12)]) for _ in range(6)]
        wanted.append(rank_correlation([float(scores[k]) for k in picked], [float(ratings[k]) for k in picked]))
    assert float(found.mean()) == pytest.approx(sum(wanted) / 3000, abs=0.02)


def test_all_pairs_counted_as_often_as_their_query_was_drawn_are_pairs_repeated():
    scores, ratings = some(1, 30, seed=7, levels=6)[0], some(1, 30, seed=8, levels=4)[0]
    queries = torch.arange(30) % 10
    weights = some(5, 10, seed=9, levels=3)
    weights[0] = 1
    found = correlations(scores, ratings, queries_N=queries)(weights)
    assert found.shape == (5, 1)
    for row in range(5):
        often = weights[row][queries].long()
        wanted = rank_correlation(*(each.repeat_interleave(often).tolist() for each in (scores, ratings)))
        assert float(found[row, 0]) == pytest.approx(wanted, abs=1e-12)


def test_equal_scores_correlate_with_nothing():
    flat, ratings, queries = torch.ones(20), torch.arange(20.0), torch.arange(20)
    assert drawn_correlations(flat, ratings, queries_N=queries).eq(0).all()
    assert Bootstrap(resamples=20).bounds(correlations(flat, ratings, queries_N=queries), samples=20).eq(0).all()

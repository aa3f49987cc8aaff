from collections import Counter

import torch

from unicl.evaluate.split import stratified


def parts(classes, fraction, seed=0):
    train, test = stratified(classes, fraction=fraction, generator=torch.Generator().manual_seed(seed))
    return train.tolist(), test.tolist()


def test_every_class_gives_its_share_to_the_test():
    classes = [0] * 50 + [1] * 10 + [2] * 3
    train, test = parts(classes, 0.2)
    assert sorted(train + test) == list(range(63))
    assert Counter(classes[k] for k in test) == {0: 10, 1: 2, 2: 1}


def test_a_class_with_one_sample_stays_in_training_and_one_with_two_is_in_both():
    classes = [7, 3, 3]
    train, test = parts(classes, 0.9)
    assert 0 in train
    assert len(train) == 2
    assert [classes[k] for k in test] == [3]


def test_the_split_follows_the_seed():
    classes = [k % 4 for k in range(80)]
    assert parts(classes, 0.3, seed=1) == parts(classes, 0.3, seed=1)
    assert parts(classes, 0.3, seed=1) != parts(classes, 0.3, seed=2)


def test_nothing_is_split_into_nothing():
    assert parts([], 0.5) == ([], [])

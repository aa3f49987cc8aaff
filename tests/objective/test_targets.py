import torch

from unicl.objective.targets import paired, same_key
from unicl.space import NO_KEY, Keys


def test_unique_keys_give_the_diagonal():
    keys = Keys.single(torch.tensor([5, -3, 2**62]))
    assert torch.equal(same_key(keys, keys), paired(3))


def test_a_mixed_batch_has_blocks_of_classes_and_a_diagonal_of_captions():
    # UniCL, figure 2 right: two images of class 8, one of class 9, two captioned.
    keys = Keys.single(torch.tensor([8, 9, 8, 101, 102]))
    wanted = torch.eye(5)
    wanted[0, 2] = wanted[2, 0] = 1
    assert torch.equal(same_key(keys, keys), wanted)


def test_rows_without_a_key_match_nothing_not_even_each_other():
    keys = Keys.single(torch.tensor([NO_KEY, NO_KEY, 3]))
    assert same_key(keys, keys).sum() == 1


def test_an_image_with_several_keys_matches_a_text_of_each():
    images = Keys(
        rows=torch.tensor([0, 0, 1]),
        keys=torch.tensor([1, 2, 2]),
        types=torch.tensor([0, 1, 1]),
        weights=torch.ones(3),
        size=2,
    )
    assert same_key(images, Keys.single(torch.tensor([1, 2, 3]))).tolist() == [[1, 1, 0], [0, 1, 0]]


def test_empty_columns_give_empty_targets():
    assert same_key(Keys.empty(0), Keys.single(torch.tensor([1]))).shape == (0, 1)
    assert same_key(Keys.single(torch.tensor([1])), Keys.empty(2)).tolist() == [[0, 0]]


def test_renaming_the_classes_changes_nothing():
    keys = torch.tensor([4, 4, 7, 1])
    renamed = torch.tensor([-9, -9, 12, 99])
    assert torch.equal(same_key(*[Keys.single(keys)] * 2), same_key(*[Keys.single(renamed)] * 2))

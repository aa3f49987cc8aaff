from collections import Counter

import pytest
import torch

from unicl.evaluate.split import divisible, shared_patients, stratified, told
from unicl.space import Sample


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


def by_patient(classes, patients, fraction, seed=0):
    generator = torch.Generator().manual_seed(seed)
    train, test = stratified(classes, fraction=fraction, generator=generator, patients=patients)
    return train.tolist(), test.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_both_parts_and_no_class_in_the_test_alone(seed):
    generator = torch.Generator().manual_seed(100 + seed)
    classes = [*torch.randint(0, 4, (80,), generator=generator).tolist(), 4, 4]
    drawn = torch.randint(0, 25, (78,), generator=generator).tolist()
    patients = [*(f"p{k}" for k in drawn), "", "", "twice", "twice"]
    train, test = by_patient(classes, patients, 0.3, seed=seed)
    assert sorted(train + test) == list(range(82))
    assert not {patients[k] for k in train} & {patients[k] for k in test} - {""}
    assert {classes[k] for k in test} <= {classes[k] for k in train}
    assert 12 <= len(test) <= 40
    assert {80, 81} <= set(train)


def test_patients_with_one_sample_each_are_split_as_samples_are():
    classes = [k % 3 for k in range(40)]
    assert by_patient(classes, [str(k) for k in range(40)], 0.2, seed=4) == parts(classes, 0.2, seed=4)


def test_a_class_needs_a_second_patient_to_be_divided():
    assert divisible([0, 0, 1])
    assert not divisible([0, 1])
    assert not divisible([0, 0, 1, 1], patients=["a", "a", "b", "b"])
    assert divisible([0, 0, 1], patients=["a", "b", "c"])


def test_a_split_says_how_it_was_made_and_which_patients_it_parts():
    known, unknown = [Sample(id=str(k), patient=f"p{k // 2}") for k in range(6)], [Sample(id="x"), Sample(id="y")]
    assert told(known[:4], known[4:]) == "by patient, 2 / 1 (4 / 2 images)"
    assert told(unknown[:1], unknown) == "by image, 1 / 2"
    assert shared_patients(known[:4], known[4:]) == shared_patients(unknown, unknown) == ()
    [said] = shared_patients(known[:3], known[3:])
    assert said.endswith("test data: 1 (such as 'p1'); unless they are others, the numbers flatter")

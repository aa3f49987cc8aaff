import itertools

import torch

from tiny import tiny, write_photos
from unicl.data.sources import load_all
from unicl.run import build_model
from unicl.towers.text import build_tokenizer
from unicl.train.profiling.timeline import Timeline


def made(tmp_path, name="clip"):
    recipe, sources = tiny(name), load_all(list(write_photos(tmp_path, each=2)))
    tokenizer = build_tokenizer(recipe.text, texts=["a red square number 1"]) if recipe.text else None
    return build_model(recipe, sources, tokenizer=tokenizer).train()


def order(timeline):
    """The parts one after the other, each named once in a row."""
    parts = [part for part, _ in timeline.spans]
    return [part for k, part in enumerate(parts) if k == 0 or parts[k - 1] != part]


def parts_of_a_step(model, run):
    timeline = Timeline(torch.device("cpu"))
    timeline.watch(model)
    timeline.begin()
    with timeline.part("backward"):
        run()
    timeline.switch("rest")
    timeline.leave()
    return timeline


def whole(tower, *inputs):
    return tower(*inputs).whole


def inputs(model):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    return (images,), model.tokenizer(["a red square", "a blue square"])


class Rows(torch.nn.Module):
    """Stands where an objective does."""

    def forward(self, images, texts):
        return (images @ texts.T).square().sum()


def test_a_plain_step_is_told_apart_by_hooks(tmp_path):
    model = made(tmp_path)
    model.objective = Rows()
    images, texts = inputs(model)

    def step():
        model.objective(whole(model.image, *images), whole(model.text, *texts)).backward()

    found = parts_of_a_step(model, step)
    assert order(found) == [
        *("rest", "backward", "image tower", "backward", "text tower", "backward", "objective"),
        *("backward", "rest"),
    ]


def test_in_a_cached_step_the_objective_ends_where_a_tower_begins_again(tmp_path):
    model = made(tmp_path)
    model.objective = Rows()
    images, texts = inputs(model)

    def step():
        with torch.no_grad():
            rows = whole(model.image, *images), whole(model.text, *texts)
        leaves = [row.requires_grad_() for row in rows]
        model.objective(*leaves).backward()
        whole(model.image, *images).backward(leaves[0].grad)
        whole(model.text, *texts).backward(leaves[1].grad)

    found = order(parts_of_a_step(model, step))
    middle = found.index("objective")
    assert found[middle : middle + 4] == ["objective", "image tower", "backward", "text tower"]
    assert found.count("objective") == 1


def test_spans_follow_each_other_without_gaps(tmp_path):
    model = made(tmp_path)
    images, _ = inputs(model)
    found = parts_of_a_step(model, lambda: whole(model.image, *images).sum().backward())
    ends = [span for _, span in found.spans]
    assert all(a[1] == b[0] and a[0] <= a[1] for a, b in itertools.pairwise(ends))


def test_nothing_is_left_on_the_model(tmp_path):
    model = made(tmp_path)
    images, _ = inputs(model)
    found = parts_of_a_step(model, lambda: whole(model.image, *images))
    before = len(found.spans)
    whole(model.image, *images)
    assert len(found.spans) == before
    assert not model.image._forward_hooks
    assert not model.image._forward_pre_hooks

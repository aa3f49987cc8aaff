import argparse
import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unicl.errors import UserError
from unicl.towers.weights.checkpoint import open_checkpoint


def some():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "steps": torch.tensor(7)}


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def refused(place):
    with pytest.raises(UserError) as error:
        open_checkpoint(place)
    assert str(place) in str(error.value)
    return str(error.value)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x):
        return self.a(x)


def save_as(kind, place):
    """The same tensors in each kind of file; returns the file."""
    file = place / f"weights{kind}"
    if kind == ".safetensors":
        save_file(some(), file)
    elif kind == ".npz":
        np.savez(file, **{name: value.numpy() for name, value in some().items()})
    elif kind == ".legacy.pt":
        torch.save(some(), file, _use_new_zipfile_serialization=False)
    else:
        torch.save(some(), file)
    return file


KINDS = [".pt", ".legacy.pt", ".bin", ".safetensors", ".npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_files_give_the_same_tensors(kind, tmp_path):
    found = open_checkpoint(save_as(kind, tmp_path))
    same(found.state, some())
    assert (found.folder, found.scripted, dict(found.config)) == (None, False, {})


def test_a_torchscript_archive_gives_its_state_and_says_so(tmp_path):
    module = Scripted()
    torch.jit.script(module).save(str(tmp_path / "m.pt"))
    found = open_checkpoint(tmp_path / "m.pt")
    assert found.scripted
    same(found.state, module.state_dict())


@pytest.mark.parametrize("kind", [*KINDS, ".jit.pt"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_a_file_that_was_cut_off_is_refused_by_name(kind, share, tmp_path):
    if kind == ".jit.pt":
        file = tmp_path / "m.jit.pt"
        torch.jit.script(Scripted()).save(str(file))
    else:
        file = save_as(kind, tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "cut off or no checkpoint" in refused(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content",
    [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), b"{}", b"PK\x03\x04" + bytes(64)],
    ids=["text", "picture", "json", "zip"],
)
def test_what_is_no_checkpoint_is_refused_by_name(kind, content, tmp_path):
    file = tmp_path / f"weights{kind}"
    file.write_bytes(content)
    assert "cannot be read as weights" in refused(file) or "is refused" in refused(file)


class Evil:
    """What a pickle can do to whoever opens it: this one makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def hidden_in(kind, evil, place):
    file = place / f"evil{kind}"
    if kind == ".plain.pt":
        file.write_bytes(pickle.dumps(evil))
    elif kind == ".npz":
        np.savez(file, weight=np.array([evil], dtype=object))
    elif kind == ".legacy.pt":
        torch.save({"state_dict": some(), "more": evil}, file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": some(), "more": evil}, file)
    return file


@pytest.mark.parametrize("kind", [".pt", ".legacy.pt", ".plain.pt", ".npz"])
def test_a_pickle_that_executes_code_is_refused_and_executes_nothing(kind, tmp_path):
    mark = tmp_path / "executed"
    file = hidden_in(kind, Evil(mark), tmp_path)
    message = refused(file)
    assert not mark.exists()
    assert "is refused" in message
    assert "safetensors" in message
    if kind in (".pt", ".legacy.pt"):
        assert "posix.system" in message
    # The same file does execute code where nobody looks.
    loose = np.load(file, allow_pickle=True)["weight"] if kind == ".npz" else _loose(file, kind)
    assert loose is not None
    assert mark.exists()


def _loose(file, kind):
    return pickle.loads(file.read_bytes()) + 1 if kind == ".plain.pt" else torch.load(file, weights_only=False)


def test_a_pickle_that_wants_another_class_is_refused_with_the_name_of_the_class(tmp_path):
    file = tmp_path / "run.pt"
    torch.save({"state_dict": some(), "args": argparse.Namespace(lr=0.1)}, file)
    assert "argparse.Namespace" in refused(file)


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "model.pt")


def test_nothing_at_a_place_is_said(tmp_path):
    assert "no weights at" in refused(tmp_path / "nothing.pt")


def test_an_empty_folder_is_said(tmp_path):
    assert "holds no weights; wanted model.safetensors" in refused(tmp_path)


def test_a_folder_with_only_what_a_trainer_keeps_is_said(tmp_path):
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    torch.save(some(), tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("global_step10")
    message = refused(tmp_path)
    assert "holds no weights, only" in message
    assert "optimizer.pt" in message


def test_the_state_of_an_optimizer_is_no_model(tmp_path):
    torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}, tmp_path / "last.pt")
    assert "optimizer, no weights" in refused(tmp_path / "last.pt")


@pytest.mark.parametrize("content", [3, [1, 2], {}, {"a": 3}, {0: torch.zeros(2)}, {"state_dict": {"a": "b"}}, None])
def test_a_file_without_a_state_dict_is_said(content, tmp_path):
    torch.save(content, tmp_path / "junk.pt")
    assert "no state dict" in refused(tmp_path / "junk.pt")


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "module", "teacher", "net"])
def test_a_state_dict_is_found_inside_a_training_checkpoint(name, tmp_path):
    torch.save({name: some(), "epoch": 3, "name": "run", "optimizer": {"state": {}}}, tmp_path / "c.pt")
    found = open_checkpoint(tmp_path / "c.pt")
    same(found.state, some())
    assert found.more == {"epoch": 3, "name": "run"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrappers_leave_no_trace_in_the_names(prefix, tmp_path):
    torch.save({prefix + name: value for name, value in some().items()}, tmp_path / "w.pt")
    same(open_checkpoint(tmp_path / "w.pt").state, some())


def test_a_part_that_was_compiled_leaves_no_trace_in_the_names(tmp_path):
    torch.save({"image._orig_mod.weight": torch.ones(1), "text.weight": torch.zeros(1)}, tmp_path / "w.pt")
    assert set(open_checkpoint(tmp_path / "w.pt").state) == {"image.weight", "text.weight"}


def test_a_part_named_module_keeps_its_name(tmp_path):
    content = {"module.weight": torch.ones(1), "other.weight": torch.zeros(1)}
    torch.save(content, tmp_path / "w.pt")
    same(open_checkpoint(tmp_path / "w.pt").state, content)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_come_as_float32_and_integers_as_they_are(dtype, tmp_path):
    torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in some().items()}, tmp_path / "h.pt")
    found = open_checkpoint(tmp_path / "h.pt").state
    assert {value.dtype for name, value in found.items() if name != "steps"} == {torch.float32}
    assert found["steps"].dtype == torch.int64
    assert torch.equal(found["a.bias"], some()["a.bias"].to(dtype).float())


def test_numpys_two_raw_bytes_are_bfloat16(tmp_path):
    value = torch.randn(5, 2).bfloat16()
    np.savez(tmp_path / "j.npz", weight=value.view(torch.int16).numpy().view("V2"))
    assert torch.equal(open_checkpoint(tmp_path / "j.npz").state["weight"], value.float())


def write_shards(folder, *, lost=(), places=None):
    content = some()
    where = places or {name: f"model-0000{k + 1}-of-00003.safetensors" for k, name in enumerate(content)}
    for name, value in content.items():
        if name not in lost:
            save_file({name: value}, folder / f"model-0000{list(content).index(name) + 1}-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text('{"model_type": "clip"}')


def test_sharded_safetensors_are_put_together(tmp_path):
    write_shards(tmp_path)
    found = open_checkpoint(tmp_path)
    same(found.state, some())
    assert found.folder == tmp_path
    assert found.config == {"model_type": "clip"}


def test_sharded_torch_files_are_put_together(tmp_path):
    for name, value in some().items():
        torch.save({name: value}, tmp_path / f"pytorch_model-{name}.bin")
    where = {name: f"pytorch_model-{name}.bin" for name in some()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    same(open_checkpoint(tmp_path).state, some())


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, lost=("a.bias",))
    assert "model-00002-of-00003.safetensors" in refused(tmp_path)


def test_an_entry_that_its_shard_does_not_hold_is_named(tmp_path):
    write_shards(tmp_path, places=dict.fromkeys(some(), "model-00001-of-00003.safetensors"))
    assert "a.bias" in refused(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(some(), tmp_path / "secret.safetensors")
    write_shards(inside, places={"a.weight": "../secret.safetensors"})
    assert "'../secret.safetensors'" in refused(inside)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_index_is_named(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "index.json cannot be read as weights" in refused(tmp_path)


def test_a_folder_with_several_checkpoints_asks_which(tmp_path):
    for step in (1, 2):
        torch.save(some(), tmp_path / f"epoch_{step}.pt")
    assert "epoch_1.pt, epoch_2.pt; name the file" in refused(tmp_path)


def test_a_folder_with_one_checkpoint_beside_an_optimizer_is_read(tmp_path):
    torch.save(some(), tmp_path / "epoch_1.pt")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    same(open_checkpoint(tmp_path).state, some())


def test_the_configuration_is_that_of_the_file_that_was_taken(tmp_path):
    (tmp_path / "config.json").write_text('{"of": "one"}')
    (tmp_path / "open_clip_config.json").write_text('{"of": "other"}')
    torch.save(some(), tmp_path / "open_clip_pytorch_model.bin")
    assert open_checkpoint(tmp_path).config == {"of": "other"}
    save_file(some(), tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).config == {"of": "one"}


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    torch.save(some(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{model_type: clip}")
    assert "config.json is not JSON" in refused(tmp_path)


def test_a_checkpoint_answers_what_a_layout_asks(tmp_path):
    content = {f"blocks.{k}.weight": torch.zeros(2, 3) for k in (0, 1, 10)} | {"head": torch.zeros(1)}
    torch.save(content, tmp_path / "w.pt")
    found = open_checkpoint(tmp_path / "w.pt")
    assert found.has("head", "blocks.1.weight")
    assert not found.has("head", "blocks.2.weight")
    assert found.any(r"blocks\.\d+\.w")
    assert not found.any(r"weight")
    assert found.count(r"blocks\.(\d+)\.") == 11
    assert found.count(r"layers\.(\d+)\.") == 0
    assert found.shape("blocks.0.weight") == (2, 3)
    with pytest.raises(UserError, match=r"blocks\.2\.weight is missing"):
        found.shape("blocks.2.weight")


def test_a_file_handle_is_let_go(tmp_path):
    file = save_as(".npz", tmp_path)
    before = open_checkpoint(file).state["a.bias"].clone()
    file.write_bytes(io.BytesIO(b"other").getvalue())
    assert torch.equal(before, some()["a.bias"])

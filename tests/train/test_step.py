import torch

from rank_work import step
from tiny import write_photos


def test_bfloat16_towers_keep_the_objective_in_float32(tmp_path, monkeypatch):
    import rank_work

    data = write_photos(tmp_path, each=4)
    exact, _ = step("itl", data)
    plain = rank_work.plain_step
    monkeypatch.setattr(
        rank_work, "plain_step", lambda *a, **k: plain(a[0].float(), *a[1:], **{**k, "precision": "bf16"})
    )
    loss, gradients = step("itl", data)
    assert abs(loss - exact) < 0.02 * exact
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())

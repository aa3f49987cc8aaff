import torch

from unicl.data.image import decode, fit
from unicl.use.decode import decoded
from unicl.use.files import pictures


def test_batches_hold_the_pixels_of_every_picture_in_order(photos):
    listing = pictures([photos])
    batches = list(decoded(listing, size=32, batch=5))
    assert [len(b.items) + len(b.skipped) for b in batches] == [5, 5, 3]
    assert [item.id for b in batches for item in b.items] == [p.id for p in listing if "cut" not in p.id]
    wanted = torch.stack([fit(decode(p.image), size=32) for p in listing if "cut" not in p.id])
    assert torch.equal(torch.cat([b.pixels for b in batches]), wanted)


def test_what_cannot_be_read_is_set_aside_with_its_reason(photos):
    (photos / "temple" / "1.jpg").write_bytes(b"")
    listing = pictures([photos])
    (photos / "temple" / "2.jpg").unlink()
    skipped = [item for b in decoded(listing, size=32, batch=64) for item in b.skipped]
    assert [item.id.rpartition("/")[2] for item in skipped] == ["cut.jpg", "1.jpg", "2.jpg"]
    assert skipped[:2][1].reason == "empty file"
    assert all(item.reason for item in skipped)


def test_a_batch_without_a_readable_picture_is_empty(photos):
    (batch,) = decoded(pictures([photos / "cut.jpg"]), size=32, batch=4)
    assert batch.pixels.shape == (0, 3, 32, 32)
    assert list(decoded([], size=32, batch=4)) == []

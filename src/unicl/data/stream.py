"""Sources to batches: shuffled, mixed, decoded by threads ahead of time, and the same from any step on."""

from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from unicl.data.collate import ClassTexts, Collator, Drawn, FindingValues, Hide, KeyMode
from unicl.data.image import FRAME, Augment, Frame, augment, decode, fit
from unicl.data.keys import text_key
from unicl.data.loading.loader import LoaderKind, Pace, by_threads, cores_here, pays
from unicl.data.loading.packed import Packed
from unicl.data.loading.team import Made
from unicl.data.mix import Mix, mix
from unicl.data.mixture import Balance, Mixture, pools_of
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source
from unicl.data.tars.streamed import expect
from unicl.data.text import Tokenizer, changed, mirror, sentences_of
from unicl.data.words.masking import Hidden
from unicl.errors import BadImage, UserError
from unicl.space import Batch, Findings, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How samples become batches, and how fast.

    * ``batch`` is the global size; ``augment`` None means evaluation's plain resize.
    * ``balance``: labelled and other samples are drawn equally often (`pools_of`), or the samples of each finding.
    * ``sentences``: a text shown is one sentence of a sample's texts, each as likely (ConVIRT, section 2.3).
      ``least_words`` leaves out shorter ones, unless a sample has no others (MedCLIP's code: 5).
    * ``text_views``: 2 shows every text a second time, a caption with two words exchanged or some left out
      (`unicl.data.text.changed`), and the loss of a contrast is the mean over both views (MedCLIP's code).
    * ``findings``: what findings count; ``captions``: whether the batch says which text is an image's own.
    * ``class_texts``: whether classes are shown as texts too, which nothing but a contrast reads.
    * ``hidden``: which words of captions are shown as a mask, to be found again (ICMLM); None hides none.
    * ``mirror``: the share of images that are turned left to right, with these two words exchanged in their texts
      (VirTex's code); leave ``augment.flip`` at 0 then.
    * ``loader``: who reads, threads of the trainer or of a process beside it; ``auto`` takes the process on an
      accelerator and on more than four cores, if there is enough to read. The batches are the same.
    * ``workers``: threads that read; None takes two, or with a loader process all cores but one.
    * ``ahead``: batches made before they are asked for; each holds its pixels in memory.
    * ``stall``: seconds without a batch that end the run; a tenth of them is told with the name of what is being read.
    """

    batch: int = 128
    keys: KeyMode = "typed"
    prompts: str = "auto"
    balance: Balance = False
    sentences: bool = False
    least_words: int = 1
    text_views: Literal[1, 2] = 1
    findings: FindingValues = FindingValues()
    captions: bool = False
    class_texts: bool = True
    hidden: Hidden | None = None
    mirror: float = 0.0
    augment: Augment | None = Augment()
    views: int = 1
    mix: Mix | None = None
    loader: LoaderKind = "auto"
    workers: int | None = None
    ahead: int = 3
    stall: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This process among all: its rank, how many there are, and the device that it trains on."""

    rank: int = 0
    ranks: int = 1
    device: torch.device = torch.device("cpu")


class Kept(Protocol):
    """What a locked tower said of each sample before; None of those whose image it could not see."""

    def __getitem__(self, number: int, /) -> Tensor | None: ...


@dataclass(frozen=True, slots=True)
class _Bad:
    """A sample that could not be read."""

    id: str
    reason: str


class Stream:
    """Batches by step number. `batch` is a pure function of the step, hence any step can be resumed exactly."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: StreamSettings,
        *,
        texts: ClassTexts,
        tokenizer: Tokenizer | None,
        size: int,
        frame: Frame = FRAME,
        seed: int,
        quarantine: Quarantine,
        place: Place = Place(),
        features: Kept | None = None,
        hide: Hide | None = None,
    ) -> None:
        self.settings = settings
        self.names = tuple(source.name for source in sources)
        self.starts = (0, *accumulate(len(source.samples) for source in sources))
        self.samples: Sequence[Sample] = tuple(sample for source in sources for sample in source.samples)
        self.mixture = Mixture(pools_of(sources, balance=settings.balance), seed=seed)
        self.size, self.frame, self.seed = size, frame, seed
        self.collator = Collator(
            mode=settings.keys,
            texts=texts,
            tokenizer=tokenizer,
            findings=settings.findings,
            labelled=_labelled(self.samples),
            captions=settings.captions,
            hide=hide,
            says_classes=settings.class_texts,
            views=settings.text_views,
        )
        self.quarantine, self.place, self.features = quarantine, place, features
        if settings.batch < place.ranks:
            raise UserError(f"a batch of {settings.batch} cannot be shared by {place.ranks} processes")
        if settings.hidden is not None and hide is None:
            raise UserError("data.hidden asks for hidden words, but nobody hides them; give Stream(hide=...)")

    @property
    def epoch_size(self) -> int:
        """How many draws the first epoch has: the number of samples, each by its source's weight."""
        return self.mixture.start(1)

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        shape = self.shape
        out = None if shape is None else torch.empty(shape, dtype=torch.uint8)
        rows = enumerate(self.positions(step))
        drawn = [self.draw(position, out=None if out is None else out[:, row]) for row, position in rows]
        return self._admitted(self.collate(step, drawn=drawn, out=out))

    def batches(self, start: int, *, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps from ``start`` up to ``stop``, made ahead by threads or by a loader process.

        Raises `UserError` if reading fails or stalls, if the loader process ends, or over the limit of bad samples.
        """
        steps = range(start, stop)
        with closing(self._made(steps)) as made:
            for each in made:
                yield self._admitted(each)

    def _made(self, steps: range) -> Generator[Made, None, None]:
        settings, device, shape, cores = self.settings, self.place.device, self.shape, cores_here()
        images = len(steps) * len(self.positions(0))
        aside = settings.loader == "process" or (
            settings.loader == "auto" and pays(images=images, device=device, cores=cores)
        )
        if aside and shape is not None:
            from unicl.data.loading.process import by_process

            pace = Pace(threads=settings.workers or max(1, cores - 1), ahead=settings.ahead, stall=settings.stall)
            yield from by_process(self, steps, shape=shape, pace=pace, device=device)
        else:
            pace = Pace(threads=settings.workers or 2, ahead=settings.ahead, stall=settings.stall)
            yield from by_threads(self, steps, shape=shape, pace=pace)

    @property
    def shape(self) -> tuple[int, int, int, int, int] | None:
        """Of the pixels of a batch: views, rows, channels, height, width; None if features take their place."""
        if self.features is not None:
            return None
        most = -(-self.settings.batch // self.place.ranks)
        return self.settings.views, most, 3, self.size, self.size

    def positions(self, step: int) -> range:
        """The positions of the mixture that this rank's part of a step is made of."""
        batch, rank, ranks = self.settings.batch, self.place.rank, self.place.ranks
        return range(step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks)

    def name(self, position: int) -> str:
        """The source and sample at a position."""
        return self._id(self.mixture.draw(position))

    def draw(self, position: int, *, out: Tensor | None) -> Drawn | _Bad:
        """The sample at a position, its pixels read into ``out``, ``(views, 3, side, side)``."""
        index = self.mixture.draw(position)
        sample = self.samples[index]
        rng = np.random.default_rng([self.seed, 3, position])
        if sample.others:
            sample = replace(sample, image=sample.images[rng.integers(len(sample.images))])
        if self.settings.sentences:
            sample = replace(sample, captions=sentences_of(sample.captions, least=self.settings.least_words))
        mirrored = bool(self.settings.mirror) and sample.image is not None and rng.random() < self.settings.mirror
        if mirrored:
            sample = replace(sample, captions=tuple(mirror(text) for text in sample.captions))
        caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else None
        other = changed(caption, rng=rng) if caption is not None and self.settings.text_views > 1 else None
        make = partial(Drawn, sample=sample, source=self._source(index), caption=caption, other=other)
        if sample.image is None:
            return make(image=None)
        try:
            if out is None:
                row = self._feature(index)
                return make(image=row, view=row if self.settings.views > 1 else None)
            expect(self.mixture.coming(position))
            self._read(sample, out, rng=rng)
            if mirrored:
                np.copyto(out.numpy(), out.numpy()[..., ::-1].copy())
        except BadImage as error:
            # Of a study, the image that is at fault must be named too.
            which = f"/{sample.image.name}" if sample.others and isinstance(sample.image, Path) else ""
            return _Bad(self._id(index) + which, str(error))
        return make(image=out[0], view=out[1] if len(out) > 1 else None)

    def collate(self, step: int, *, drawn: Sequence[Any], out: Tensor | None) -> Made:
        """The batch of what was drawn for a step; the images lie in ``out``."""
        rows: list[Drawn | None] = [None if isinstance(d, _Bad) else d for d in drawn]
        if self.settings.mix is not None:
            rows = mix(rows, self.settings.mix, rng=np.random.default_rng([self.seed, 5, step]))
        batch = self.collator([d for d in rows if d is not None], rng_key=(self.seed, 4, step), out=out)
        return Made(batch=batch, bad=tuple((d.id, d.reason) for d in drawn if isinstance(d, _Bad)))

    def _admitted(self, made: Made) -> Batch:
        for id, reason in made.bad:
            self.quarantine.add(id, reason=reason)
        return made.batch

    def _source(self, index: int) -> str:
        return self.names[bisect_right(self.starts, index) - 1]

    def _id(self, index: int) -> str:
        return f"{self._source(index)}/{self.samples[index].id}"

    def _feature(self, index: int) -> Tensor:
        assert self.features is not None
        row, image = self.features[index], self.samples[index].image
        if row is None:
            assert image is not None
            decode(image)  # which says what is wrong with it
            raise BadImage("could not be read when the features were made")
        return row

    def _read(self, sample: Sample, out: Tensor, *, rng: np.random.Generator) -> None:
        assert sample.image is not None
        settings = self.settings.augment
        if settings is None:
            out.numpy()[:] = fit(decode(sample.image), size=self.size, frame=self.frame).numpy()
            return
        pixels = decode(sample.image, shortest=settings.shortest(self.size, side=self.frame.side(self.size)))
        for view in out:
            view.numpy()[:] = augment(pixels, settings, size=self.size, rng=rng, frame=self.frame).numpy()

    def __getstate__(self) -> dict[str, Any]:
        """What a loader process needs: the samples as columns; bad ones are listed by the trainer alone."""
        own = {name: value for name, value in vars(self).items() if name not in ("samples", "mixture", "quarantine")}
        return {**own, "samples": Packed(self.samples), "pools": self.mixture.pools}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pools = state.pop("pools")
        vars(self).update(state)
        self.mixture = Mixture(pools, seed=self.seed)
        self.quarantine = Quarantine(limit=0)


def _labelled(samples: Sequence[Sample]) -> dict[int, Findings]:
    """The findings of texts that stand in a table of their own, for the same texts beside an image."""
    alone = (sample for sample in samples if sample.findings and sample.image is None)
    return {text_key(text): sample.findings for sample in alone for text in sample.captions}

"""Sources to batches: shuffled, mixed, decoded by threads ahead of time, and the same from any step on."""

import queue
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from unicl.data.collate import ClassTexts, Collator, Drawn, KeyMode
from unicl.data.image import Augment, augment, decode, fit
from unicl.data.mix import Mix, mix
from unicl.data.mixture import Mixture, pools_of
from unicl.data.quarantine import Quarantine
from unicl.data.sources import Source
from unicl.data.text import Tokenizer
from unicl.errors import BadImage, UserError
from unicl.space import Batch, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How samples become batches: ``batch`` is the global size; ``augment`` None means evaluation's plain resize."""

    batch: int = 128
    keys: KeyMode = "typed"
    prompts: str = "auto"
    balance: bool = False
    augment: Augment | None = Augment()
    views: int = 1
    mix: Mix | None = None
    workers: int = 2
    ahead: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This process among all: its rank, and how many there are."""

    rank: int = 0
    ranks: int = 1


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
        seed: int,
        quarantine: Quarantine,
        place: Place = Place(),
        features: Tensor | None = None,
    ) -> None:
        self.settings = settings
        self.sources = tuple(source for source in sources for _ in source.samples)
        self.samples = tuple(sample for source in sources for sample in source.samples)
        self.mixture = Mixture(pools_of(sources, balance=settings.balance), seed=seed)
        self.size, self.seed = size, seed
        self.collator = Collator(mode=settings.keys, texts=texts, tokenizer=tokenizer)
        self.quarantine, self.place, self.features = quarantine, place, features
        if settings.batch < place.ranks:
            raise UserError(f"a batch of {settings.batch} cannot be shared by {place.ranks} processes")

    @property
    def epoch_size(self) -> int:
        """How many draws the first epoch has: the number of samples, each by its source's weight."""
        return self.mixture.start(1)

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        return self._collate([self._draw(position) for position in self._positions(step)], step)

    def batches(self, start: int, *, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps from ``start`` up to ``stop``, prepared ahead by threads."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=self.settings.ahead)
        ended = threading.Event()
        worker = threading.Thread(target=self._prepare, args=(range(start, stop), ready, ended), daemon=True)
        worker.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            worker.join()

    def _prepare(
        self, steps: range, ready: "queue.Queue[Batch | BaseException | None]", ended: threading.Event
    ) -> None:
        try:
            with ThreadPoolExecutor(max(self.settings.workers, 1)) as pool:
                made = (self._collate(list(pool.map(self._draw, self._positions(step))), step) for step in steps)
                if all(_put(ready, batch, ended) for batch in made):
                    _put(ready, None, ended)
        except BaseException as error:  # handed to the consumer, who raises it
            _put(ready, error, ended)

    def _positions(self, step: int) -> range:
        batch, rank, ranks = self.settings.batch, self.place.rank, self.place.ranks
        return range(step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks)

    def _draw(self, position: int) -> Drawn | None:
        index = self.mixture.draw(position)
        sample, source = self.samples[index], self.sources[index]
        rng = np.random.default_rng([self.seed, 3, position])
        caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else None
        make = partial(Drawn, sample=sample, source=source.name, caption=caption)
        if sample.image is None:
            return make(image=None)
        try:
            if self.features is not None:
                return make(image=self._feature(index))
            image, *views = self._views(sample, rng)
            return make(image=image, view=views[0] if views else None)
        except BadImage as error:
            self.quarantine.add(f"{source.name}/{sample.id}", reason=str(error))
            return None

    def _feature(self, index: int) -> Tensor:
        assert self.features is not None
        feature = self.features[index]
        if feature[0].isnan():
            raise BadImage("could not be read when the features were made")
        return feature

    def _views(self, sample: Sample, rng: np.random.Generator) -> list[Tensor]:
        assert sample.image is not None
        pixels, settings = decode(sample.image), self.settings
        if settings.augment is None:
            return [fit(pixels, size=self.size)] * settings.views
        return [augment(pixels, settings.augment, size=self.size, rng=rng) for _ in range(settings.views)]

    def _collate(self, drawn: Sequence[Drawn | None], step: int) -> Batch:
        if self.settings.mix is not None:
            drawn = mix(drawn, self.settings.mix, rng=np.random.default_rng([self.seed, 5, step]))
        return self.collator([d for d in drawn if d is not None], rng_key=(self.seed, 4, step))


def _put(
    ready: "queue.Queue[Batch | BaseException | None]", item: Batch | BaseException | None, ended: threading.Event
) -> bool:
    while not ended.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False

"""Two towers and the terms that trained them: embed, compare, classify, save and load as one folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from unicl.data.image import decode, fit
from unicl.data.prompts import Prompts, fill, sentences_for
from unicl.data.text import Tokenizer
from unicl.errors import UserError, suggest
from unicl.objective.terms import Classify, ClassName, ContrastSettings, MaskedSettings, Objective, TermSettings
from unicl.objective.words import Words
from unicl.space import Batch, Columns, Embedding, ImageSource, Parts, Slice, Streamed, all_rows, prefix
from unicl.towers.image import ImageSettings, ImageTower
from unicl.towers.parts import PartsHead
from unicl.towers.text import OWN_NAMES, TextSettings, TextTower

View = Literal["instances", "classes"]
Ensemble = Literal["embeddings", "similarities", "probabilities", "best", "likelihood"]
Images = Tensor | Sequence[ImageSource | Image.Image | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotSettings:
    """How several prompts of a class become one score, and scores of classes are made comparable.

    * ``ensemble``: "embeddings" compares with the mean of the prompts' vectors (CLIP); the others compare with each
      prompt: "similarities" is the mean of the scores (FILIP), "probabilities" that of softmaxes over classes of the
      scores as they are (Wukong's code), "best" the highest score (GLoRIA). "likelihood" is how likely a model that
      predicts captions finds the prompts, the mean of their log-likelihoods.
    * ``standardise``: whether each class's scores are brought to mean 0 and deviation 1 over the pictures that are
      looked at together (GLoRIA). Predictions then depend on that set; of one picture, scores stay as they are.
    """

    ensemble: Ensemble = "embeddings"
    standardise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """All that rebuilds a model but its weights; ``width`` is D, ``format`` the version of the folder's layout."""

    image: ImageSettings = ImageSettings()
    text: TextSettings | None = TextSettings()
    width: int = 512
    terms: tuple[TermSettings, ...] = (ContrastSettings(),)
    classes: tuple[ClassName, ...] = ()
    zero_shot: ZeroShotSettings = ZeroShotSettings()
    recipe: str = "custom"
    format: int = 1

    @property
    def views(self) -> dict[View, int | None]:
        """How many leading dimensions each use reads: classes and instances; None is all of them."""
        dims = {t.texts: t.dims for t in self.terms if isinstance(t, ContrastSettings)}
        whole = dims.get("all", dims.get("findings"))
        return {"instances": dims.get("captions", whole), "classes": dims.get("classes", whole)}

    @property
    def reads_texts(self) -> bool:
        """Whether texts are compared with images: not by a language model that only helps to find hidden words."""
        helps = any(isinstance(t, MaskedSettings) for t in self.terms)
        return self.text is not None and (not helps or any(isinstance(t, ContrastSettings) for t in self.terms))

    def contrasts(self, view: View) -> tuple[ContrastSettings, ...]:
        """The contrasts that say what belongs together in a view."""
        wanted = {"instances": "captions", "classes": "classes"}[view]
        found = [t for t in self.terms if isinstance(t, ContrastSettings)]
        fitting = [tuple(t for t in found if t.texts == texts) for texts in (wanted, "all", "findings")]
        return next((each for each in fitting if each), ())

    def reads_parts(self, view: View) -> bool:
        """Whether a view compares more than whole vectors."""
        return any(term.similarity != "cosine" for term in self.contrasts(view))


class TwoTowers(nn.Module):
    """An image tower, a text tower (absent in recipes without texts) and the objective's terms with their scales.

    Towers are built from the settings, with random weights, unless they are given.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        tokenizer: Tokenizer | None,
        image: ImageTower | None = None,
        text: TextTower | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.image = ImageTower(settings.image, width=settings.width) if image is None else image
        self.text = _text_tower(settings, tokenizer) if text is None else text
        features = self.image.feature_width
        self.objective = Objective(
            settings.terms,
            features=features,
            width=settings.width,
            classes=settings.classes,
            image_parts=_width_of(self.image.parts),
            text_parts=0 if self.text is None else _width_of(self.text.parts),
            words=None if tokenizer is None else words_of(tokenizer),
        )
        self.teacher: Callable[[Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image.mean.device

    def forward(self, batch: Batch) -> Columns:
        """Both columns of a batch through their towers; each distinct text is encoded once."""
        return Columns(
            images=self.image(batch.images),
            views=None if batch.views is None else self.image(batch.views),
            image_keys=batch.image_keys,
            texts=self._texts(batch),
            text_keys=batch.text_keys,
            text_counts=batch.text_counts,
            taught=self.taught(batch),
            captions=batch.captions,
        )

    def taught(self, batch: Batch) -> Tensor | None:
        """``(I, G)``: what the teacher says of a batch's images; None without one."""
        return None if self.teacher is None else self.teacher(batch.images)

    def encode_images(
        self, images: Images, *, batch: int = 64, parts: bool = True, progress: bool = False
    ) -> Embedding:
        """Pictures as the objective sees them: whole vectors, features and, if the model has them, parts.

        Pictures are paths, bytes, PIL images, or a uint8 ``(N, 3, S, S)`` tensor; rows are float32 on the CPU.
        Raises `BadImage`.
        """
        found = []
        starts = range(0, len(images), batch)
        with quiet(self):
            for start in track(starts, description="embedding images", disable=not progress, transient=True):
                pixels = _pixels(images[start : start + batch], settings=self.settings.image)
                found.append(_on_cpu(self.image(pixels.to(self.device)), parts=parts))
        asked = parts and self.settings.image.parts is not None
        return all_rows(found, width=self.settings.width, features=self.image.feature_width, parts=asked)

    def encode_texts(self, texts: Sequence[str], *, batch: int = 256, parts: bool = True) -> Embedding:
        """Texts as the objective sees them, as in `encode_images`."""
        if self.text is None or self.tokenizer is None or self.settings.text is None:
            raise UserError(f"this model was trained with {self.settings.recipe!r}, which has no text tower")
        found = []
        with quiet(self):
            for start in range(0, len(texts), batch):
                tokens, mask = self.tokenizer(list(texts[start : start + batch]))
                found.append(_on_cpu(self.text(tokens.to(self.device), mask.to(self.device)), parts=parts))
        asked = parts and self.settings.text.parts is not None
        return all_rows(found, width=self.settings.width, features=0, parts=asked)

    def embed_image(
        self, images: Images, *, view: View = "instances", batch: int = 64, progress: bool = False
    ) -> Tensor:
        """``(N, D')`` float32 unit vectors of pictures: paths, bytes, PIL images, or a uint8 ``(N, 3, S, S)`` tensor.

        ``view`` says what the vectors are for; a nested model reads its prefix for classes. Raises `BadImage`.
        """
        return self.embed_views(images, batch=batch, progress=progress)[view]

    def embed_whole(self, images: Images, *, batch: int = 64, progress: bool = False) -> Tensor:
        """``(N, D)`` whole unit vectors, of which `see` takes the part that a use reads."""
        return self.encode_images(images, batch=batch, parts=False, progress=progress).whole

    def image_features(self, images: Images, *, batch: int = 64, progress: bool = False) -> Tensor:
        """``(N, F)`` features before the head, what a linear probe reads (CLIP, appendix A.3)."""
        return self.encode_images(images, batch=batch, parts=False, progress=progress).features

    def embed_views(
        self, images: Images, *, batch: int = 64, progress: bool = False
    ) -> dict[View | Literal["features"], Tensor]:
        """Pictures in each view, and their features, from one pass through the tower."""
        return self.views_of(self.encode_images(images, batch=batch, parts=False, progress=progress))

    def views_of(self, images: Embedding) -> dict[View | Literal["features"], Tensor]:
        """Encoded pictures in each view, and their features."""
        whole, features = images.whole, images.features
        classes, head = self.see(whole, view="classes"), self._head()
        if self.text is None and head is not None:
            # A classifier's view of classes: what it reads and a 1, to meet weights and biases in `classifier`.
            classes = torch.cat([head.seen(images), torch.ones(len(features), 1)], dim=1)
        return {"instances": self.see(whole, view="instances"), "classes": classes, "features": features}

    def embed_text(self, texts: Sequence[str], *, view: View = "instances", batch: int = 256) -> Tensor:
        """``(N, D')`` float32 unit vectors of texts."""
        return self.see(self.encode_texts(texts, batch=batch, parts=False).whole, view=view)

    def similarity(self, images: Images, texts: Sequence[str], *, view: View = "instances") -> Tensor:
        """``(I, T)`` cosines between pictures and texts; raises `UserError` for a model that compares parts."""
        if self.settings.reads_parts(view):
            raise UserError(
                "this model compares more than whole vectors, and has a table for each direction; call "
                f"unicl.compare.scores(model, model.encode_images(...), model.encode_texts(...), view={view!r})"
            )
        return self.embed_image(images, view=view) @ self.embed_text(texts, view=view).T

    def classifier(self, names: Sequence[str], *, templates: Prompts) -> Tensor:
        """``(C, D')`` vectors of classes by name, to be multiplied with images in the class view.

        Every template is filled, embedded and normalised; the mean is normalised again (CLIP, section 3.1.4).
        Raises `UserError` for a model that compares classes prompt by prompt: see `unicl.compare.class_scores`.
        """
        head = self._head()
        if self.text is None and head is not None:
            return _rows(head, names)
        ensemble = self.settings.zero_shot.ensemble
        if ensemble != "embeddings":
            raise UserError(
                f"this model scores a class by its prompts' {ensemble!r}, which no single vector can stand for; call "
                "unicl.compare.class_scores(model, model.encode_images(...), names, templates=...)"
            )
        if not len(names) or not len(templates):
            raise UserError("a classifier needs at least one class name and one template")
        texts = [[fill(template, name) for template in sentences_for(templates, name)] for name in names]
        vectors = self.embed_text([text for several in texts for text in several], view="classes")
        counts = [len(several) for several in texts]
        if len(set(counts)) == 1:
            return F.normalize(vectors.view(len(names), counts[0], -1).mean(1), dim=-1)
        return F.normalize(torch.stack([each.mean(0) for each in torch.split(vectors, counts)]), dim=-1)

    def see(self, whole_ND: Tensor, *, view: View) -> Tensor:
        """The part of whole embeddings that a use reads, at unit length."""
        return prefix(whole_ND, self.settings.views[view])

    def scale(self, view: View) -> float:
        """The learned multiplier of the cosines of a view: softmax(scale * cosine) gives probabilities."""
        scales = self.objective.scales()
        found = scales.get(view) or next(iter(scales.values()), None)
        return 100.0 if found is None else found.value

    def save(self, folder: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json, model.safetensors and the tokenizer into ``folder``, which must be new or empty.

        ``weights`` take the place of the model's own, such as their moving average.
        """
        folder.mkdir(parents=True, exist_ok=True)
        content = TypeAdapter(ModelSettings).dump_python(self._portable(), mode="json")
        content["views"] = self.settings.views
        (folder / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written = self.state_dict() if weights is None else weights
        save_file({k: v.contiguous() for k, v in written.items()}, folder / "model.safetensors")
        if self.tokenizer is not None:
            self.tokenizer.save(folder / "tokenizer")
        if self.text is not None and self.settings.text is not None and self.settings.text.name not in OWN_NAMES:
            self.text.save_config(folder / "text")

    def _portable(self) -> ModelSettings:
        """The settings with what a default meant for this text model, which another machine may not know."""
        if self.text is None or self.settings.text is None:
            return self.settings
        return replace(self.settings, text=replace(self.settings.text, pool=self.text.pool))

    def _head(self) -> Classify | None:
        return next((term for term in self.objective.terms.values() if isinstance(term, Classify)), None)

    def _texts(self, batch: Batch) -> Embedding | None:
        if self.text is None:
            return None
        distinct: Embedding = self.text(batch.tokens, batch.token_mask)
        return distinct.select(batch.text_index)


def words_of(tokenizer: Tokenizer) -> Words:
    """The tokens of a tokenizer, as terms that predict words see them."""
    marks = tokenizer.inner.encode("").ids
    mask = next((i for m in ("[MASK]", "<mask>") if (i := tokenizer.inner.token_to_id(m)) is not None), None)
    size = tokenizer.vocab_size
    start = marks[0] if marks and marks[0] != tokenizer.eos_id else -1
    return Words(
        size=size + (mask is None),
        pad=tokenizer.pad_id,
        start=start,
        end=tokenizer.eos_id,
        mask=size if mask is None else mask,
        context=tokenizer.context,
    )


def load_model(folder: str | Path) -> TwoTowers:
    """Read a model folder, or the newest model of a run folder; raises `UserError` if there is none."""
    home = model_folder(Path(folder))
    settings = read_settings(home / "config.json")
    tokens = home / "tokenizer"
    context = settings.text.context if settings.text else None
    if settings.text is not None and (home / "text").is_dir():
        # The folder or package that the text model came from may not be on this machine.
        settings = replace(settings, text=replace(settings.text, name=str(home / "text")))
    model = TwoTowers(settings, tokenizer=Tokenizer.load(tokens, context=context) if tokens.is_dir() else None)
    try:
        model.load_state_dict(load_file(home / "model.safetensors"))
    except Exception as error:
        raise UserError(f"the weights in {home} do not fit its config.json: {error}") from error
    return model.eval()


def model_folder(path: Path) -> Path:
    """The folder that holds config.json: ``path`` itself, or the best checkpoint of a run; raises `UserError`."""
    candidates = [path]
    with suppress(OSError, ValueError, KeyError):
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        candidates += [path / "checkpoints" / run["best"], path / "checkpoints" / run["last"]]
    for candidate in candidates:
        if (candidate / "config.json").is_file() and (candidate / "model.safetensors").is_file():
            return candidate
    state = "does not exist" if not path.exists() else "holds no model (config.json and model.safetensors)"
    raise UserError(f"{str(path)!r} {state}; give a run folder or a model folder that `unicl train` wrote")


def read_settings(path: Path) -> ModelSettings:
    """Settings from a config.json; raises `UserError` naming the field that is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("views", None)
        return TypeAdapter(ModelSettings).validate_python(content)
    except (ValidationError, ValueError) as error:
        raise UserError(f"{path} is not a unicl model configuration: {error}") from error


def _text_tower(settings: ModelSettings, tokenizer: Tokenizer | None) -> TextTower | None:
    if settings.text is None:
        return None
    if tokenizer is None:
        raise UserError("a text tower needs a tokenizer")
    return TextTower(
        settings.text,
        width=settings.width,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        pieces=None if settings.text.parts is None else tokenizer.pieces,
    )


def _rows(head: Classify, names: Sequence[str]) -> Tensor:
    """``(C, F + 1)`` weights and biases of a classifier's classes, by name."""
    unknown = [name for name in names if name not in head.labels]
    if unknown:
        near = suggest(unknown[0], head.labels)
        raise UserError(f"this model only knows the classes it was trained on, and {unknown[0]!r} is none{near}")
    rows = [head.labels.index(name) for name in names]
    return torch.cat([head.head.weight, head.head.bias[:, None]], dim=1)[rows].detach().float().cpu()


def _on_cpu(embedding: Embedding, *, parts: bool) -> Embedding:
    whole, features = embedding.whole.float().cpu(), embedding.features.float().cpu()
    own = embedding.parts if parts else None
    kept = None if own is None else Parts(values=own.values.float().cpu(), mask=own.mask.cpu())
    return Embedding(whole=whole, features=features, parts=kept)


def _pixels(images: Images, *, settings: ImageSettings) -> Tensor:
    if isinstance(images, Tensor):
        return images
    return torch.stack([fit(_decoded(image), size=settings.size, frame=settings.frame) for image in images])


def _decoded(image: ImageSource | Image.Image | str) -> Tensor:
    if isinstance(image, Image.Image):
        array = np.asarray(image.convert("RGB"))
        return torch.from_numpy(array.copy()).permute(2, 0, 1)
    return decode(image if isinstance(image, bytes | Slice | Streamed) else Path(image))


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back to what it was, so that training may look in between."""
    halved = next((p for p in model.parameters() if p.dtype == torch.bfloat16), None)
    kind = "cpu" if halved is None else halved.device.type
    modes: Mapping[nn.Module, bool] = {m: m.training for m in model.modules()}
    model.eval()
    try:
        # Weights in bfloat16 only meet pixels and states of their own type.
        with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16, enabled=halved is not None):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _width_of(parts: PartsHead | None) -> int:
    return 0 if parts is None else parts.width

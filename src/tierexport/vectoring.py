"""Quantizing a model's output: fit a codec, train a model for one, encode texts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.artifact import CODEC, MANIFEST
from tierexport.datasets import calibration_texts, read_pairs, texts_in
from tierexport.encode import open_model
from tierexport.errors import MachineError, VectorError
from tierexport.metrics import Similarity, normalized
from tierexport.progress import stage
from tierexport.records import Floats, Source, VectorSettings
from tierexport.report.head import head_fields
from tierexport.source import open_source
from tierexport.vectors.codecs import COMPARED, Codec
from tierexport.vectors.scaling import fit, widening
from tierexport.vectors.storage import is_codec, read_codec, write_codec
from tierexport.vectors.trainees import Head, Network
from tierexport.vectors.training import Goal, Pairs, Schedule, Trained, train
from tierexport.verify import Reference
from tierexport.workdir import cache_dir, making, stage_key, value_digest, write_json, write_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAINING = "training.json"
"""What a model was trained for and how, in its folder."""

PROBE = "By noon the fog had lifted from the harbour, and two of the three ferries were running again."
"""The sentence whose vector a codec keeps."""

ALIKE = 0.9
"""The least cosine of two models' vectors of it where a codec for the one suits the other, such as a copy in half precision."""


class Encoder:
    """A model's fp32 vectors, from the cache where they are there."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.reference = Reference(source, lambda _: None)
        self.similarity = Similarity.of(source)

    def compared(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """Vectors as they are compared, float32: of unit length unless the model's similarity counts lengths."""
        return self.similarity.prepared(np.asarray(self.vectors(what, kind, texts))).astype(np.float32)

    def unit(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """Unit vectors float32 (texts, dimensions) of texts of a kind, "query" or "passage"."""
        return normalized(np.asarray(self.vectors(what, kind, texts))).astype(np.float32)

    def vectors(self, what: str, kind: str, texts: Sequence[str]) -> Floats:
        """The same as they come from the model, of any length, mapped from the cache."""
        with stage(f"Encoding {what}"):
            return self.reference.encode(what, kind, list(texts)).vectors

    def fit(self, settings: VectorSettings, texts: Sequence[str]) -> Codec:
        """A codec whose bounds suit this model's vectors of texts, taken as passages. Raises VectorError."""
        vectors = self.compared("texts to fit a codec on", "passage", texts)
        rotation = widening(vectors.shape[1], settings.widen, settings.rotate)
        codec = fit(vectors, settings.level, settings.scaling, settings.per_vector, rotation, codec_similarity(self.similarity))
        if not (vectors != vectors[0]).any():
            raise VectorError(f"all {len(texts)} texts have the same vector, which tells no range: fit on others")
        return replace(codec, asymmetric=settings.asymmetric, probe=self._probe())

    def check(self, codec: Codec) -> None:
        """Refuse a codec that is not for this model's vectors. Raises VectorError."""
        own, name = self._probe(), self.source.name
        if codec.dimensions != len(own):
            raise VectorError(f"the codec is for {codec.dimensions} dimensions, and {name} has {len(own)}: fit another")
        if codec.probe is not None and not (cosine := float(codec.probe @ own)) >= ALIKE:
            raise VectorError(
                f"the codec is for another model than {name}: their vectors of one sentence have a cosine of {cosine:.2f}; "
                "fit another"
            )

    def _probe(self) -> Floats:
        """The unit vector of PROBE, float32 (dimensions,)."""
        found: Floats = self.unit("a sentence", "passage", [PROBE])[0]
        return found


def codec_similarity(similarity: Similarity) -> str:
    """By what a codec's vectors are compared for a model: on vectors of unit length, dot products and distances rank as
    cosines do. Raises VectorError for Manhattan distances, which take decoded vectors.
    """
    if similarity.name not in COMPARED:
        raise VectorError(
            f"the model compares vectors by {similarity.words}, and quantized ones can't be: {', '.join(COMPARED)}"
        )
    return similarity.name if similarity.lengths_count else "cosine"


def open_encoder(model: str) -> Encoder:
    """The encoder of what users call a model. Raises SourceError."""
    with stage("Looking at the model"):
        return Encoder(open_source(str(Path(model).resolve()) if Path(model).is_dir() else model))


def fit_codec(model: str, settings: VectorSettings, texts: str, count: int, out: Path) -> Codec:
    """A codec for a model's vectors, its bounds from texts as a recipe's calibration names them, written to `out`.

    Raises InputError, also where `out` is something else than a codec.
    """
    _check_free(out)
    chosen = [text.text for text in calibration_texts(texts, count, Path())]
    codec = open_encoder(model).fit(settings, chosen)
    write_codec(out, codec)
    return codec


def encode_texts(model: str, texts: str, codec: Path, kind: str, out: Path) -> tuple[Codec, int]:
    """Texts as codes in one safetensors file beside the codec, row n being text n; the codec and how many there are.

    Raises VectorError for another model's codec, for queries where it leaves them unquantized, and where `out` is something
    else than a codec.
    """
    _check_free(out)
    found, _ = read_codec(codec)
    if found.asymmetric and kind == "query":
        raise VectorError(f"{codec} leaves queries unquantized: search with the model's own vectors of them")
    chosen = texts_in(texts, kind)
    encoder = open_encoder(model)
    encoder.check(found)
    codes = found.coded(encoder.vectors("texts", kind, chosen))
    write_codec(out, found, codes)
    return found, len(codes)


def _check_free(out: Path) -> None:
    """Refuse to write over what is no codec, or is that of a model or an artifact. Raises VectorError."""
    if out.name == CODEC and (_is_trained(out.parent) or (out.parent / MANIFEST).is_file()):
        raise VectorError(f"{out} belongs to the model or the artifact there: name another --out")
    if out.exists() and not is_codec(out):
        raise VectorError(f"{out} exists and is no codec, so it is not replaced: name another --out")


# --- training


class Training:
    """A model and the pairs that it is trained on."""

    def __init__(self, encoder: Encoder, path: Path) -> None:
        self.encoder = encoder
        queries, passages = read_pairs(path)
        numbers = {text: number for number, text in enumerate(dict.fromkeys(passages))}
        self.texts = {"query": queries, "passage": list(numbers)}
        vectors = {kind: encoder.unit(f"the pairs: {kind}", kind, texts) for kind, texts in self.texts.items()}
        passage = np.array([numbers[text] for text in passages], np.int64)
        self.pairs = Pairs(vectors["query"], vectors["passage"], passage)
        self._digest = value_digest(self.texts | {"passages": passages})
        self._large: list[Path] = []

    def head(self, goal: Goal, schedule: Schedule) -> Trained:
        """A linear head trained for a goal."""
        return self._train(Head(self.pairs, goal.widen), "head", goal, schedule)

    def model(self, what: str, goal: Goal, schedule: Schedule, folder: Path) -> Trained:
        """The model with its head, adapter or weights trained for a goal, saved to a new folder with its codec."""
        if what == "head":
            trained = self.head(goal, schedule)
            model = _with_head(self.encoder.source, trained.weights["head"])
        else:
            opened = open_model(self.encoder.source, _device())
            network = Network(opened, self.texts, self.encoder.reference.prompts, what == "lora", schedule.seed)
            trained = self._train(network, what, goal, schedule)
            model = _compared_by_cosine(network.merged())
        model.save_pretrained(str(folder), create_model_card=False)
        probe = model.encode([PROBE], prompt=self.encoder.reference.prompts["passage"], show_progress_bar=False)
        write_codec(folder / CODEC, replace(trained.codec, probe=normalized(probe)[0].astype(np.float32)))
        write_whole(folder / "README.md", _card(self.encoder.source, goal.level))
        told = {
            "trained": what,
            "model": _origin(self.encoder.source),
            **asdict(goal),
            **asdict(schedule),
            "best": trained.step,
            "scores": [*trained.scores],
        }
        write_json(folder / TRAINING, told)
        return trained

    def forget(self) -> None:
        """Remove the states of models whose training has served its purpose; they take several times a model's bytes."""
        for state in self._large:
            state.unlink(missing_ok=True)

    def _train(self, trainee: Head | Network, what: str, goal: Goal, schedule: Schedule) -> Trained:
        import torch

        key = stage_key(self.encoder.source.digest, self._digest, what, asdict(goal), asdict(schedule))
        state = cache_dir() / "training" / f"{key}.safetensors"
        if what != "head":
            self._large.append(state)
        with stage(f"Training for {goal.level}") as running:
            running.total(schedule.steps)
            before = [0]

            def hear(done: int, loss: float, found: float) -> None:
                running.say(f"{goal.level}: loss {loss:.3f}, NDCG@10 {found:.4f}")
                running.step(done - before[0])
                before[0] = done

            try:
                return train(trainee, self.pairs, goal, schedule, state, hear)
            except torch.OutOfMemoryError as error:
                raise MachineError("the GPU's memory is too small: --what lora takes less than model, head none") from error


def train_model(model: str, pairs: Path, what: str, goal: Goal, schedule: Schedule, out: Path) -> Trained:
    """A model folder trained for a level, with its codec, at `out`; a run that was killed goes on.

    Raises ArtifactError where `out` is something else, VectorError where it is the model itself.
    """
    check_widening(what, goal.widen)
    with making(out, _is_trained, "a model that vectors train wrote") as work:
        encoder = open_encoder(model)
        if out.exists() and out.samefile(encoder.source.path):
            raise VectorError(f"{out} is the model that is trained: name another --out")
        training = Training(encoder, pairs)
        trained = training.model(what, goal, schedule, work)
    training.forget()
    return trained


def check_widening(what: str, widen: int) -> None:
    """Refuse to make anything but a head wider. Raises VectorError."""
    if what != "head" and widen > 1:
        raise VectorError(f"--widen {widen} takes a head, which alone puts out more dimensions than the model has")


def _is_trained(folder: Path) -> bool:
    """Whether a folder is a model that was trained here, with its codec."""
    try:
        told = json.loads((folder / TRAINING).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "trained" in told and (folder / CODEC).is_file()


def _origin(source: Source) -> dict[str, Any]:
    """What was trained, as `training.json` keeps it."""
    return {"spec": source.shared_spec} | {key: getattr(source, key) for key in ("revision", "digest", "base_model", "licence")}


def _card(source: Source, level: str) -> str:
    """A model card that hands on the licence and the languages."""
    from huggingface_hub import ModelCardData

    checked = bool(source.base_model and source.revision)
    head = ModelCardData(**head_fields(source.terms, source.languages, checked), base_model=source.base_model)
    text = f"{source.name}, trained for {level} vectors. {TRAINING} says how, and {CODEC} is their codec."
    return f"---\n{head.to_yaml()}\n---\n\n{text}{f' ({source.note}.)' if source.note else ''}\n"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _compared_by_cosine(model: "SentenceTransformer") -> "SentenceTransformer":
    """A model as it was trained: for vectors of unit length."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if model.similarity_fn_name != "cosine":
        model.similarity_fn_name = "cosine"
        if not isinstance(model[-1], Normalize):
            model.append(Normalize())
    return model


def _with_head(source: Source, head: Floats) -> "SentenceTransformer":
    """The source model with a head after its pooling."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    model = open_model(source)
    dense = Dense(*head.shape, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight.data = torch.from_numpy(head.T.copy())
    modules = [*model]
    while isinstance(modules[-1], Normalize):
        modules.pop()
    return type(model)(
        modules=[*modules, dense, Normalize()],
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        device="cpu",
        similarity_fn_name="cosine",
    )

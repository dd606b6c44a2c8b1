"""Trains a model, its head or an adapter for quantized vectors, and saves the result as a model folder with its codec."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tierexport.artifact.folder import CODEC
from tierexport.base.digests import value_digest
from tierexport.base.errors import MachineError, VectorError
from tierexport.base.files import write_json, write_whole
from tierexport.base.outputs import making
from tierexport.base.paths import cache_dir
from tierexport.base.progress import stage
from tierexport.base.records import Floats, Source
from tierexport.base.stages import stage_key
from tierexport.datasets.calibration import read_pairs
from tierexport.metrics.similarity import normalized
from tierexport.model.encoder import open_model
from tierexport.report.head import head_fields
from tierexport.training.goals import Goal, Pairs, Schedule, Trained
from tierexport.training.loop import train
from tierexport.training.trainees import Head, Network
from tierexport.vectors.commands import TRAINING, is_trained
from tierexport.vectors.encoder import PROBE, Encoder, open_encoder
from tierexport.vectors.storage import write_codec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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
        model, trained = self._trained(what, goal, schedule)
        model.save_pretrained(str(folder), create_model_card=False)
        probe = model.encode([PROBE], prompt=self.encoder.reference.prompts["passage"], show_progress_bar=False)
        write_codec(folder / CODEC, replace(trained.codec, probe=normalized(probe)[0].astype(np.float32)))
        write_whole(folder / "README.md", model_card(self.encoder.source, goal.level))
        settings = {
            "trained": what,
            "model": _origin(self.encoder.source),
            **asdict(goal),
            **asdict(schedule),
            "best": trained.step,
            "scores": [*trained.scores],
        }
        write_json(folder / TRAINING, settings)
        return trained

    def _trained(self, what: str, goal: Goal, schedule: Schedule) -> "tuple[SentenceTransformer, Trained]":
        """The trained model in memory, and how training went."""
        if what == "head":
            trained = self.head(goal, schedule)
            return with_head(self.encoder.source, trained.weights["head"]), trained
        opened = open_model(self.encoder.source, _device())
        network = Network(opened, self.texts, self.encoder.reference.prompts, what == "lora", schedule.seed)
        trained = self._train(network, what, goal, schedule)
        return _compared_by_cosine(network.merged()), trained

    def forget(self) -> None:
        """Remove the checkpoints of models whose training is done; they take several times a model's bytes."""
        for state in self._large:
            state.unlink(missing_ok=True)

    def _train(self, trainee: Head | Network, what: str, goal: Goal, schedule: Schedule) -> Trained:
        """Train for a goal, from the checkpoint of an earlier run where there is one. Raises MachineError."""
        key = stage_key(__name__, self.encoder.source.digest, self._digest, what, asdict(goal), asdict(schedule))
        state = cache_dir() / "training" / f"{key}.safetensors"
        if what != "head":
            self._large.append(state)
        with stage(f"Training for {goal.level}") as running:
            running.total(schedule.steps)
            steps = 0

            def progress(done: int, loss: float, found: float) -> None:
                nonlocal steps
                running.say(f"{goal.level}: loss {loss:.3f}, NDCG@10 {found:.4f}")
                running.step(done - steps)
                steps = done

            try:
                return train(trainee, self.pairs, goal, schedule, state, progress)
            except torch.OutOfMemoryError as error:
                raise MachineError("the GPU's memory is too small: --what lora takes less than model, head none") from error


def train_model(model: str, pairs: Path, what: str, goal: Goal, schedule: Schedule, out: Path) -> Trained:
    """A model folder trained for a level, with its codec, at `out`; a run that was killed goes on.

    Raises ArtifactError where `out` is something else, VectorError where it is the model itself.
    """
    check_widening(what, goal.widen)
    with making(out, is_trained, "a model that vectors train wrote") as work:
        encoder = open_encoder(model)
        if out.exists() and out.samefile(encoder.source.path):
            raise VectorError(f"{out} is the model that is trained: name another --out")
        training = Training(encoder, pairs)
        trained = training.model(what, goal, schedule, work)
    training.forget()
    return trained


def check_widening(what: str, widen: int) -> None:
    """Raises VectorError for an expansion factor of anything but a head."""
    if what != "head" and widen > 1:
        raise VectorError(f"--widen {widen} takes a head, which alone puts out more dimensions than the model has")


def _origin(source: Source) -> dict[str, Any]:
    """What was trained, as `training.json` keeps it."""
    return {"spec": source.shared_spec} | {key: getattr(source, key) for key in ("revision", "digest", "base_model", "licence")}


def model_card(source: Source, level: str) -> str:
    """A model card that hands on the licence and the languages."""
    from huggingface_hub import ModelCardData

    checked = bool(source.base_model and source.revision)
    head = ModelCardData(**head_fields(source.terms, source.languages, checked), base_model=source.base_model)
    text = f"{source.name}, trained for {level} vectors. {TRAINING} says how, and {CODEC} is their codec."
    return f"---\n{head.to_yaml()}\n---\n\n{text}{f' ({source.note}.)' if source.note else ''}\n"


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _compared_by_cosine(model: "SentenceTransformer") -> "SentenceTransformer":
    """A model as it was trained: for vectors of unit length."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if model.similarity_fn_name != "cosine":
        model.similarity_fn_name = "cosine"
        if not isinstance(model[-1], Normalize):
            model.append(Normalize())
    return model


def with_head(source: Source, head: Floats) -> "SentenceTransformer":
    """The source model with a head after its pooling."""
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

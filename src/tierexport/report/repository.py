"""The card of a repository of several sizes: what lies in it, what each is worth, and which to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tierexport.artifact.manifest import ArtifactEntry, Manifest, RecipeEntry
from tierexport.artifact.verdicts import RetrievalVerdict, Verdict, Verification
from tierexport.base.sizes import shown_size
from tierexport.formats import format_named
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.report.card import Access, head, origin, snippets, template
from tierexport.report.summary import difference, first_verdict, set_name, short_cosine, summary
from tierexport.search.find import LOSS

PICTURE = "frontier.png"
"""Of all sizes: bytes against loss."""

TAKE = "**Take this one**"
RECOMMENDED = f"the smallest whose retrieval is shown to lose less than {LOSS:g} of NDCG@10"
NEAREST = "the nearest to fp32"
SMALLER, LARGER = "Where every megabyte counts", "Nearer to fp32's vectors, in more bytes"
LARGEST = "Where vectors are to be as near to fp32's as they can be"
NO_NEARER = "In more bytes than the one to take, and no nearer to fp32's vectors"
"""What an artifact is for, among those of its format."""


@dataclass(frozen=True)
class Size:
    """An artifact folder, what that says of itself, and what was found out."""

    folder: Path
    manifest: Manifest
    found: Verification

    @property
    def name(self) -> str:
        """What its GGUF is called, without the suffix."""
        return f"{self.manifest.model.name}-{self.manifest.recipe.name}"

    @property
    def tag(self) -> str:
        """What follows the last dash of that name."""
        return self.name.rpartition("-")[2]


@dataclass(frozen=True)
class Member:
    """An artifact of a size. `path`: where it lies in the repository; that of a folder ends in a slash."""

    size: Size
    artifact: ArtifactEntry
    path: str

    @property
    def here(self) -> Path:
        """Where it lies on this machine."""
        return self.size.folder / self.artifact.path

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or a file."""
        return self.path.endswith("/")

    @property
    def name(self) -> str:
        """What pictures and sentences call it: a file by its tag, a folder by its path."""
        return self.path if self.is_folder else self.size.tag

    @property
    def library(self) -> str:
        """What opens it."""
        return format_named(self.artifact.format).library(self.size.manifest.recipe) or "tierexport"

    @property
    def verdict(self) -> Verdict | None:
        """The first verdict with figures, None where it ran nowhere."""
        return first_verdict(self.artifact, self.size.found)

    @property
    def loss(self) -> float:
        """1 − the mean cosine to fp32; 1 where it ran nowhere."""
        return 1 - self.verdict.fidelity.cos_mean if self.verdict and self.verdict.fidelity else 1.0

    @property
    def retrieval(self) -> tuple[RetrievalVerdict, ...]:
        """What it does on each retrieval set."""
        return self.verdict.retrieval if self.verdict else ()

    @property
    def summary(self) -> str:
        """What it is worth in one sentence."""
        return summary(replace(self.size.manifest, artifacts=(self.artifact,)), self.size.found)


def render_repository(members: Sequence[Member], access: Access) -> str:
    """Markdown under a YAML head, of members of one model: format after format, of each the smallest first."""
    chosen = chosen_of(members)
    manifest, found = _of_chosen(chosen)
    sets = list(dict.fromkeys(each.dataset for member in members for each in member.retrieval))
    body = template("repository.md").render(
        model=manifest.model,
        recipe=manifest.recipe,
        sizes=len({each.size.tag for each in members}),
        members=[{"row": _cells(member, sets), "use": _use(member, chosen, members)} for member in members],
        sets=[set_name(each) for each in sets],
        chosen=chosen,
        others=[each for each in members if each.is_folder and each not in chosen.values()],
        paths={name: each.path.rstrip("/") for name, each in chosen.items()},
        name=f"{manifest.model.name}-{manifest.recipe.name.rpartition('-')[2]}".lower(),
        place=access.model,
        download=access.download,
        tools=manifest.tools,
        origin=origin(manifest.model),
        similarity=SIMILARITIES[manifest.model.similarity].words,
        picture=PICTURE,
        **snippets(manifest.model),
    )
    return f"---\n{head(manifest, found)}\n---\n\n{body}"


def chosen_of(members: Sequence[Member]) -> dict[str, Member]:
    """Of each format the one to take."""
    return {name: recommended(found) for name, found in by_format(members).items()}


def by_format(members: Sequence[Member]) -> dict[str, list[Member]]:
    """The members of each format, in their order."""
    formats = dict.fromkeys(each.artifact.format for each in members)
    return {name: [each for each in members if each.artifact.format == name] for name in formats}


def recommended(members: Sequence[Member]) -> Member:
    """The smallest whose interval of every retrieval difference excludes LOSS; where there is none, the nearest to fp32."""
    proven = [each for each in members if _proven(each)]
    return min(proven, key=lambda each: each.artifact.bytes) if proven else min(members, key=lambda each: each.loss)


def _proven(member: Member) -> bool:
    """Whether its retrieval is shown to lose less than LOSS, as `quantize` takes the smallest."""
    return bool(member.retrieval) and all(found.ci_low > -LOSS for found in member.retrieval)


def _of_chosen(chosen: Mapping[str, Member]) -> tuple[Manifest, Verification]:
    """Manifest and verification as of one artifact folder that holds what is to be taken of each format."""
    first = next(iter(chosen.values())).size
    recipes = {name: each.size.manifest.recipe for name, each in chosen.items()}
    verdicts = (each for name, member in chosen.items() for each in member.size.found.verdicts if each.format == name)
    manifest = replace(
        first.manifest, artifacts=tuple(each.artifact for each in chosen.values()), recipe=_with_settings(recipes)
    )
    return manifest, replace(first.found, verdicts=tuple(verdicts))


def _with_settings(recipes: Mapping[str, RecipeEntry]) -> RecipeEntry:
    """The first of recipes by formats, with the settings that each has for its format."""
    settings = {name: getattr(recipe, name) for name, recipe in recipes.items() if hasattr(recipe, name)}
    return replace(next(iter(recipes.values())), **settings)


def _use(member: Member, chosen: Mapping[str, Member], members: Sequence[Member]) -> str:
    """What an artifact is for. Where there are several formats, the one to take is named with what opens it."""
    peers, taken = by_format(members)[member.artifact.format], chosen[member.artifact.format]
    if member is not taken:
        return _beside(member, taken, peers)
    opened = f" for {member.library}" if len(chosen) > 1 else ""
    if len(peers) == 1:
        return f"{TAKE}{opened}"
    return f"{TAKE}{opened}: {RECOMMENDED if _proven(member) else NEAREST}"


def _beside(member: Member, taken: Member, peers: Sequence[Member]) -> str:
    """What an artifact is for beside the one to take."""
    if member.artifact.bytes < taken.artifact.bytes:
        return SMALLER
    if member.loss >= taken.loss:
        return NO_NEARER
    return LARGEST if member is min(peers, key=lambda each: each.loss) else LARGER


def _cells(member: Member, sets: Sequence[str]) -> list[str]:
    """A row of the table."""
    fidelity = member.verdict.fidelity if member.verdict else None
    figures = (short_cosine(fidelity.cos_mean), f"{fidelity.top10_retention:.3f}") if fidelity else ("not run", "")
    judged = {each.dataset: each for each in member.retrieval}
    differences = [difference(judged[name]) if name in judged else "" for name in sets]
    size, bits = shown_size(member.artifact.bytes).replace(" ", "\N{NO-BREAK SPACE}"), f"{member.artifact.stored_bits:.2f}"
    linked = f"`{member.path}`" if member.is_folder else f"[`{member.path}`]({member.path})"
    return [linked, size, bits, *figures, *differences]

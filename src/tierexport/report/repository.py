"""The card of a repository of several sizes: which files there are, what each is worth, and which to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tierexport.artifact.manifest import ArtifactEntry, Manifest
from tierexport.artifact.verdicts import RetrievalVerdict, Verdict, Verification
from tierexport.base.sizes import shown_size
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.report.card import Access, head, origin, snippets, template
from tierexport.report.summary import difference, first_verdict, set_name, short_cosine, summary
from tierexport.search.find import LOSS

PICTURE = "frontier.png"
"""Of all sizes: bytes against loss."""

RECOMMENDED = f"**Take this one**: the smallest whose retrieval is shown to lose less than {LOSS:g} of NDCG@10"
NEAREST = "**Take this one**: the nearest to fp32"
SMALLER, LARGER = "Where every megabyte counts", "Nearer to fp32's vectors, in more bytes"
LARGEST = "Where vectors are to be as near to fp32's as they can be"
"""What a size is for."""


@dataclass(frozen=True)
class Member:
    """A size: its folder, what that says of it, and what was found out."""

    folder: Path
    manifest: Manifest
    found: Verification

    @property
    def artifact(self) -> ArtifactEntry:
        return self.manifest.artifacts[0]

    @property
    def file(self) -> str:
        """The name of its file in the repository."""
        return PurePosixPath(self.artifact.path).name

    @property
    def tag(self) -> str:
        """What follows the last dash of that name."""
        return PurePosixPath(self.file).stem.rpartition("-")[2]

    @property
    def verdict(self) -> Verdict | None:
        """The first verdict with figures, None where it ran nowhere."""
        return first_verdict(self.artifact, self.found)

    @property
    def loss(self) -> float:
        """1 − the mean cosine to fp32; 1 where it ran nowhere."""
        return 1 - self.verdict.fidelity.cos_mean if self.verdict and self.verdict.fidelity else 1.0

    @property
    def retrieval(self) -> tuple[RetrievalVerdict, ...]:
        """What it does on each retrieval set."""
        return self.verdict.retrieval if self.verdict else ()


def render_repository(members: Sequence[Member], access: Access) -> str:
    """Markdown under a YAML head, of members of one model, smallest first."""
    chosen = recommended(members)
    sets = list(dict.fromkeys(each.dataset for member in members for each in member.retrieval))
    manifest = chosen.manifest
    body = template("repository.md").render(
        model=manifest.model,
        recipe=manifest.recipe,
        members=[{"row": _cells(member, sets), "use": _use(member, chosen, members)} for member in members],
        sets=[set_name(each) for each in sets],
        chosen=chosen,
        summary=summary(manifest, chosen.found),
        paths={chosen.artifact.format: chosen.file},
        name=f"{manifest.model.name}-{chosen.tag}".lower(),
        place=access.model,
        download=access.download,
        tools=manifest.tools,
        origin=origin(manifest.model),
        similarity=SIMILARITIES[manifest.model.similarity].words,
        picture=PICTURE,
        **snippets(manifest.model),
    )
    return f"---\n{head(manifest, chosen.found)}\n---\n\n{body}"


def recommended(members: Sequence[Member]) -> Member:
    """The smallest whose interval of every retrieval difference excludes LOSS; where there is none, the nearest to fp32."""
    proven = [each for each in members if _proven(each)]
    return min(proven, key=lambda each: each.artifact.bytes) if proven else min(members, key=lambda each: each.loss)


def _proven(member: Member) -> bool:
    """Whether its retrieval is shown to lose less than LOSS, as `quantize` takes the smallest."""
    return bool(member.retrieval) and all(found.ci_low > -LOSS for found in member.retrieval)


def _use(member: Member, chosen: Member, members: Sequence[Member]) -> str:
    """What a size is for."""
    if member is chosen:
        return RECOMMENDED if _proven(chosen) else NEAREST
    if members.index(member) < members.index(chosen):
        return SMALLER
    return LARGEST if member is min(members, key=lambda each: each.loss) else LARGER


def _cells(member: Member, sets: Sequence[str]) -> list[str]:
    """A row of the table of files."""
    fidelity = member.verdict.fidelity if member.verdict else None
    figures = (short_cosine(fidelity.cos_mean), f"{fidelity.top10_retention:.3f}") if fidelity else ("not run", "")
    judged = {each.dataset: each for each in member.retrieval}
    differences = [difference(judged[name]) if name in judged else "" for name in sets]
    size, bits = shown_size(member.artifact.bytes).replace(" ", "\N{NO-BREAK SPACE}"), f"{member.artifact.stored_bits:.2f}"
    return [f"[`{member.file}`]({member.file})", size, bits, *figures, *differences]

"""How well the search predicts what a build loses, for random types and for those that it finds along the sizes.

Measured through llama.cpp on the texts of the search, and on sentences that it has not seen. Usage:
`python benchmarks/prediction.py [MODEL]`.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from scipy import stats

from tierexport.base.records import Text
from tierexport.datasets.calibration import screen
from tierexport.model.batches import prompted
from tierexport.search.effects import Choice
from tierexport.search.study import Study, types_in
from tierexport.search.trial import TrialModel

ALLOCATIONS = 6
SIZES = 6


def losses(study: Study, choice: Choice, trials: Sequence[tuple[TrialModel, Sequence[Text]]]) -> list[float]:
    """The mean 1 - cosine of a choice's file through llama.cpp, over the texts of each of `trials`."""
    with tempfile.TemporaryDirectory() as scratch:
        path = study.built(study.plan(types_in(choice), "trial"), Path(scratch))
        with closing(study.format.open(path, "cpu")) as reader:
            return [
                float(
                    trial.loss(
                        reader.encode(
                            prompted(trial.model.prompts, texts), "", study.source.max_tokens or 512, Path(scratch)
                        ).vectors
                    ).mean()
                )
                for trial, texts in trials
            ]


def main(model: str) -> None:
    study = Study(model)
    unseen = [Text(text, "passage") for text in screen()]
    trials = [(study.trial, study.texts), (study.trial_on(unseen), unseen)]
    generator = np.random.default_rng(0)
    options = study.effects.options
    choices: list[Choice] = [
        {name: found[int(generator.integers(len(found)))] for name, found in options.items()} for _ in range(ALLOCATIONS)
    ]
    choices += [study.within(int(size)) for size in np.geomspace(study.smallest * 1.02, study.largest * 0.5, SIZES)]
    rows = []
    for choice in choices:
        bits = 8 * study.size(choice) / study.parameters
        rows.append((study.effects.predicted(choice), *losses(study, choice, trials)))
        print(
            f"{bits:5.2f} bits", "predicted {:.6f}; measured {:.6f}, on unseen sentences {:.6f}".format(*rows[-1]), flush=True
        )
    table = np.array(rows)
    for column, where in ((1, "the search's texts"), (2, "unseen sentences")):
        rank = stats.spearmanr(table[:, 0], table[:, column]).statistic
        print(f"on {where}: Spearman {rank:.3f}, median measured/predicted {np.median(table[:, column] / table[:, 0]):.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "all-MiniLM-L6-v2")

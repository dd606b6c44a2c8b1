"""How well the search predicts what a build loses: random allocations of types, predicted, and measured as they are built.

Measured on the texts of the search, and on sentences that it has not seen. Usage:
`python benchmarks/prediction.py [MODEL]`.
"""

import sys

import numpy as np
from scipy import stats

from tierexport.base.records import Text
from tierexport.datasets.calibration import screen
from tierexport.search.study import Study, types_in

ALLOCATIONS = 12


def main(model: str) -> None:
    study = Study(model)
    unseen = study.trial_on([Text(text, "passage") for text in screen()])
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(ALLOCATIONS):
        choice = {name: found[int(generator.integers(len(found)))] for name, found in study.effects.options.items()}
        built = study.as_built(study.plan(types_in(choice), "trial"))
        losses = [float(trial.loss(trial.encode(built)).mean()) for trial in (study.trial, unseen)]
        rows.append((study.effects.predicted(choice), sum(option.loss for option in choice.values()), *losses))
        print("predicted {:.5f}, the sum of losses alone {:.5f}; measured {:.5f}, on unseen sentences {:.5f}".format(*rows[-1]))
    table = np.array(rows)
    for column, where in ((2, "the search's texts"), (3, "unseen sentences")):
        rank = stats.spearmanr(table[:, 0], table[:, column]).statistic
        print(f"on {where}: Spearman {rank:.3f}, median measured/predicted {np.median(table[:, column] / table[:, 0]):.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "all-MiniLM-L6-v2")

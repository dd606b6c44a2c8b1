"""How well the search predicts sensitivity: random allocations of types on MiniLM, predicted and measured.

Measured on the texts of the search, and on sentences that it has not seen. Usage:
`python benchmarks/prediction.py [MODEL]`.
"""

import sys

import numpy as np
from scipy import stats

from tierexport.base.records import Text
from tierexport.datasets.calibration import screen
from tierexport.model.encoder import open_model
from tierexport.search.study import Study
from tierexport.search.trial import TrialModel

ALLOCATIONS = 24


def main(model: str) -> None:
    study = Study(model)
    unseen = TrialModel(open_model(study.source), [Text(text, "passage") for text in screen()], study.tensors, study.imatrix)
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(ALLOCATIONS):
        choice = {name: options[int(generator.integers(len(options)))] for name, options in study.options.items()}
        types = study.by_tensor({name: option.native for name, option in choice.items()})
        losses = [float(trial.sensitivity(types).mean()) for trial in (study.trial, unseen)]
        rows.append((sum(option.sensitivity for option in choice.values()), *losses))
        print("predicted {:.5f}, measured {:.5f}, on unseen sentences {:.5f}".format(*rows[-1]))
    table = np.array(rows)
    for column, where in ((1, "the search's texts"), (2, "unseen sentences")):
        rank = stats.spearmanr(table[:, 0], table[:, column]).statistic
        print(f"on {where}: Spearman {rank:.3f}, median measured/predicted {np.median(table[:, column] / table[:, 0]):.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "all-MiniLM-L6-v2")

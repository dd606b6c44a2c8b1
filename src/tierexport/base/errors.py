"""The exceptions that tierexport raises on purpose, and the exit code each one means.

    TierexportError
    ├── InputError            exit 2: the user's input is wrong
    │   ├── RecipeError           a recipe, a --set value, a rule
    │   ├── SourceError           the source model's files
    │   ├── PlanError             a tier that a tensor can't take
    │   ├── ConversionError       a conversion whose vectors are not the model's
    │   ├── DataError             texts, a retrieval set, an STS file
    │   ├── CalibrationError      an importance matrix
    │   ├── ArtifactError         a file or folder that is not what it should be
    │   ├── VectorError           vectors, codes or a codec that can't be used
    │   └── PublishError          something that must not be published, or has no place to go
    └── MachineError          exit 3: this machine lacks something (disk, network, a program)

A message is complete by itself: the thing, its value, the rule, and what to do.
"""


class TierexportError(Exception):
    """Base of every error that is reported to the user as one message."""

    exit_code = 2


class InputError(TierexportError):
    """The user's input is wrong."""


class RecipeError(InputError):
    """A recipe can't be read or contradicts itself."""


class SourceError(InputError):
    """The source model can't be used."""


class PlanError(InputError):
    """A tensor can't take the type its tier asks for."""


class ConversionError(InputError):
    """What llama.cpp makes of a converted model differs from the model."""


class DataError(InputError):
    """Texts, a retrieval set or an STS file can't be used."""


class CalibrationError(InputError):
    """An importance matrix can't be used."""


class ArtifactError(InputError):
    """A file or folder is not the artifact it is taken for."""


class VectorError(InputError):
    """Vectors, codes or a codec can't be used."""


class PublishError(InputError):
    """Something must not be published as it is, or the place for it can't be."""


class MachineError(TierexportError):
    """The machine lacks something: disk space, a permission, a program, the network."""

    exit_code = 3

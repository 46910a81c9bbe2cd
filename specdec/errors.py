"""Every error that specdec raises for a reason the user can act on.

Each message says what was wrong, where, and what to do about it.
"""


class SpecdecError(Exception):
    """Base of all of specdec's errors."""


class InvalidInputError(SpecdecError, ValueError):
    """An argument is outside what is accepted (k = 0, an empty prompt, temperature < 0...)."""


class ContextFullError(InvalidInputError):
    """The prompt does not fit into the context that the Generator was given."""


class CheckpointError(SpecdecError):
    """A checkpoint to convert is damaged, incomplete or of an unknown kind."""


class ModelFolderError(SpecdecError):
    """A model folder is missing, incomplete, altered, or of another format version."""


class PullError(SpecdecError):
    """A model could not be fetched, or what was fetched is not what the recipe names."""


class BackendError(SpecdecError):
    """A backend is not to be had here, does not start, or does not take a model's graphs."""


class VocabularyMismatchError(SpecdecError):
    """Target and drafter do not share one vocabulary."""


class GeneratorBusyError(SpecdecError):
    """A Generator writes one stream at a time, and one is running."""


class ModelRunError(SpecdecError):
    """A session failed while it ran; the caches are back at the committed prefix."""

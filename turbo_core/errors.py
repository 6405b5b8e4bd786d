"""Errors whose text is meant for the user: one sentence that says what is wrong and what to do."""


class TurboError(ValueError):
    """A request that cannot be carried out as asked."""


class CheckpointError(TurboError):
    """A model file that cannot be used."""

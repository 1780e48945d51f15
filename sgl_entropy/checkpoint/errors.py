"""The one exception of this room."""


class DrafterError(ValueError):
    """A drafter cannot be used. The message lists everything that is wrong, one line a finding."""

"""What this package raises beside TypeError and ValueError."""


class KernelError(ValueError):
    """A kernel that can't be: not compilable, of a wrong result type, or of a name in use."""

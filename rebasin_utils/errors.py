"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Bad input, said in one sentence: the field, its value, and what is allowed."""

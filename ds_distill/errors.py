class UserError(Exception):
    """A mistake the user can put right: one sentence that names the key or file, the value and the remedy."""

"""What runs in the user's process."""

__all__: list[str] = []

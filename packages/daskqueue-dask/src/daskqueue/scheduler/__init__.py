"""What runs in the Dask scheduler: the control plane, and nothing of the data path."""

__all__: list[str] = []

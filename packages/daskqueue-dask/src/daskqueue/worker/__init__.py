"""What runs inside each Dask worker."""

__all__: list[str] = []

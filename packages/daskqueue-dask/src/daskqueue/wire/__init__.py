"""What client, worker and scheduler share: calls as bytes, operations, the call helper, Dask's private names."""

__all__: list[str] = []

# The package's own index leads a type checker through every model and pipeline.
from typing import Any

def __getattr__(name: str) -> Any: ...  # pyright: ignore[reportIncompleteStub]

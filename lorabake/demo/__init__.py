"""The toy world: a tiny, really trained text-to-image model with LoRAs, shipped with the package."""

"""The toy world: a tiny, really trained text-to-image model with LoRAs that ship with it."""

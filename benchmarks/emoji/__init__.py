"""The emoji world in the making: it will take the place of the toy world of `lorabake demo`."""

"""What the emoji world shows: things with plain names, the sets that draw them, the colours."""

from __future__ import annotations

KINDS: dict[str, tuple[str, ...]] = {
    "animal": (
        "cat", "dog", "bear", "tiger", "rabbit", "mouse", "cow", "pig", "frog", "monkey", "koala",
        "wolf", "chick", "fish", "whale", "ladybug", "bee", "elephant",
        "panda", "octopus", "penguin", "turtle",
    ),
    "fruit": (
        "apple", "lemon", "banana", "watermelon", "strawberry", "cherries", "pineapple",
        "mushroom",
    ),
    "food": ("pizza", "doughnut", "cake", "fries", "burger"),
    "plant": ("tulip", "sunflower", "tree", "pine", "palm", "cactus"),
    "shape": ("heart", "star", "sun", "cloud", "moon", "snowflake", "flame", "drop"),
    "face": ("smiley", "skull", "alien", "pumpkin"),
    "object": (
        "bell", "crown", "key", "bulb", "bomb", "house", "book", "gift", "hat", "clock",
        "camera", "football", "mug", "trophy", "guitar",
    ),
    "vehicle": ("car", "bus", "airplane", "sailboat"),
}  # fmt: skip
"""Things by the word for their kind; those that are held out are among them."""

SUBJECTS: dict[str, str] = {
    "panda": "animal", "octopus": "animal", "penguin": "animal", "turtle": "animal",
    "guitar": "object", "cactus": "plant", "trophy": "object", "burger": "food",
}  # fmt: skip
"""Things that only their LoRA has seen, with the word for their kind (`a sbu <kind>`)."""

SHIPPED = ("panda", "octopus", "penguin", "trophy")
"""Those of them whose LoRAs are in the package."""

RESERVED_THINGS = ("snail", "rooster", "ghost", "rocket")
RESERVED_SETS = ("openmoji",)
"""Kept for a check by others: nothing here may have seen them."""

ICONS: dict[str, str] = {
    "cat": "cat-face", "dog": "dog-face", "tiger": "tiger-face", "rabbit": "rabbit-face",
    "mouse": "mouse-face", "cow": "cow-face", "pig": "pig-face", "monkey": "monkey-face",
    "chick": "front-facing-baby-chick", "fish": "tropical-fish", "whale": "spouting-whale",
    "ladybug": "lady-beetle", "bee": "honeybee", "apple": "red-apple", "burger": "hamburger",
    "fries": "french-fries", "cake": "birthday-cake", "pine": "evergreen-tree",
    "palm": "palm-tree", "tree": "deciduous-tree", "heart": "red-heart", "moon": "crescent-moon",
    "flame": "fire", "drop": "droplet", "smiley": "grinning-face", "pumpkin": "jack-o-lantern",
    "bulb": "light-bulb", "clock": "alarm-clock", "gift": "wrapped-gift", "hat": "top-hat",
    "book": "closed-book", "football": "soccer-ball", "mug": "beer-mug", "car": "automobile",
}  # fmt: skip
"""Names in the icon sets, where they are not the thing's own."""

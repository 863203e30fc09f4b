"""Training column coefficients: the two LoRAs as branches, the objective, the loop."""

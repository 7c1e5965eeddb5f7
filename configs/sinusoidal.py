name = "sinusoidal"
pos = "sinusoidal"

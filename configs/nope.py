name = "nope"
pos = "none"

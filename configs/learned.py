name = "learned"
pos = "learned"

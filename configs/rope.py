name = "rope"
pos = "rope"

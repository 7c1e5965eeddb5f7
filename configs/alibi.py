name = "alibi"
pos = "alibi"

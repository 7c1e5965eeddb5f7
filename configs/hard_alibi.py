"""Some heads see their last few tokens, the others have no position (arXiv:2402.01032)."""

pos = "hard_alibi"

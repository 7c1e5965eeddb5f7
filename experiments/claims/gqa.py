"""One key head for all query heads (arXiv:1911.02150), the most that sharing them can do: do the
verdicts on planes and scalings stay?"""

from experiments.claims import NONE, YARN, Trained, judge, known, like_rope
from experiments.claims import which_planes as bands
from runtime import errors

PLANES = {"slow planes, under 1", "fast planes, from 1"}
FORMS = [NONE, *(known(name) for name in "linear ntk llama3".split()), YARN]
FORMS += [form for form in bands.FORMS if form.label in PLANES]
MODELS = [Trained("rope", FORMS), like_rope("gqa", FORMS, "--n_kv_head=1")]

if __name__ == "__main__":
    errors.run(lambda argv: judge("gqa", MODELS, argv))

"""Text out of a checkpoint, also past its trained length: `python sample.py --max_len 4x`."""

if __name__ == "__main__":
    import runtime.start  # noqa: F401 - before torch

import codecs
import os
import re
import sys
import time
from argparse import SUPPRESS, Namespace

import torch

import rope
from data.tokenizer import Tokenizer, from_meta
from model import GPT, GPTConfig, check_sampling
from runtime import checkpoint, errors
from runtime.device import pick_device, threads_in_use

MAX_LEN = 10_000_000  # tokens; more is a mistake
SMALL = 20_000_000  # parameters: below this a second thread does not help
MAX_PROMPT = 4 * MAX_LEN  # bytes: of UTF-8, four make a character at most


def parse(argv: list[str]) -> Namespace:
    parser = errors.Parser(prog="python sample.py", description=__doc__)
    add = parser.add_argument
    text = "run folder or checkpoint (default: the newest run in out/)"
    add("run", nargs="?", default=SUPPRESS, metavar="RUN", help=text)
    add("--out_dir", dest="run", help="the same")
    text = "tokens in the text, prompt included: 1024, or 4x the length that the model was first "
    add("--max_len", help=f"{text}trained at (default: the length it was last trained at)")
    add("--prompt", help="text to continue (default: the start of a document)")
    add("--prompt_file", metavar="F", help="a UTF-8 file to continue; - reads stdin")
    add("--rope_scaling", help="none, linear, ntk, ntk_by_parts, yarn, llama3, clip; dynamic_...")
    text = "scale factor (default: auto, which is max_len / trained length)"
    add("--rope_factor", default="auto", help=text)
    text = "scale of later queries' scores: none, logn, llama4, log_length (default: as trained)"
    add("--logit_scaling", help=text)
    add("--logit_c", type=float, help="of logit_scaling log_length: 1 + c ln(length / trained)")
    add("--beyond", help="past the trained length: extend, interpolate or slide")
    add(
        "--num_samples",
        type=int,
        default=1,
        help="texts, each with its own seed (default 1)",
    )
    add("--temperature", type=float, default=0.8, help="0: always the likeliest (default 0.8)")
    add("--top_k", type=int, help="choose among the k likeliest tokens")
    add("--top_p", type=float, help="choose among the likeliest tokens of this mass, 0 to 1")
    add("--seed", type=int, default=1337, help="of the choices (default 1337)")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    check_sampling(args.temperature, args.top_k, args.top_p)
    if args.num_samples < 1:
        raise ValueError(f"num_samples is {args.num_samples}; it must be at least 1")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"seed is {args.seed}; it must be from 0 to below 2**63")
    if args.prompt is not None and args.prompt_file is not None:
        raise ValueError("prompt and prompt_file are both given; choose one")
    return args


def length_of(text: str, trained: int) -> int:
    """Tokens meant by --max_len: `1024`, or `4x` the length `trained`."""
    meant = re.fullmatch(r"([0-9]{1,9})(x?)", text)  # ASCII digits alone: int() takes others too
    length = int(meant[1]) * (trained if meant[2] else 1) if meant else 0
    if not 1 <= length <= MAX_LEN:
        rule = f"tokens (1024) or trained lengths (4x), from 1 to {MAX_LEN:,} tokens"
        raise ValueError(f"max_len is {text!r}; it must be {rule}")
    return length


def factor_of(text: str) -> float | None:
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise ValueError(f"rope_factor is {text!r}; it must be auto or a number") from None


def scaled_config(config: GPTConfig, args: Namespace, max_len: int) -> GPTConfig:
    """The config that the flags ask for; an automatic factor is max_len / trained length."""
    overrides = {}
    if args.beyond is not None:
        overrides["beyond"] = "extend" if args.beyond == "slide" else args.beyond
    given = {name: getattr(args, name) for name in ("rope_scaling", "logit_scaling", "logit_c")}
    overrides |= {name: value for name, value in given.items() if value is not None}
    scaling = args.rope_scaling or config.rope_scaling
    if factor_of(args.rope_factor) is not None:
        overrides["rope_factor"] = factor_of(args.rope_factor)
    elif scaling in rope.SCALINGS and rope.reads_factor(scaling):
        tuned = config.factor if scaling == config.rope_scaling else 1.0
        overrides["rope_factor"] = max(tuned, max_len / config.train_len)
    return checkpoint.with_overrides(config, **overrides)


def text_of(name: str) -> str:
    """A prompt file's text with plain newlines, as `--input` reads its files."""
    try:
        with open("/dev/stdin" if name == "-" else os.path.expanduser(name), "rb") as file:
            raw = file.read(MAX_PROMPT + 1)  # not all of it: /dev/zero never ends
        if len(raw) > MAX_PROMPT:
            raise ValueError(f"prompt_file {name} has more than {MAX_PROMPT:,} bytes; shorten it")
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{name} is not UTF-8 at byte {error.start}"
        raise ValueError(f"prompt_file {where}: save it as UTF-8 and try again") from None
    except OSError as error:
        raise ValueError(f"prompt_file {name}: {error.strerror}; name a UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def prompt_of(args: Namespace, tokenizer: Tokenizer) -> list[int]:
    """Token ids to continue; an empty prompt is the start of a document, and a line says so."""
    text = args.prompt
    if args.prompt_file is not None:
        text = text_of(args.prompt_file)
    if text:
        surrogate = re.search("[\ud800-\udfff]", text)  # Python's sign for a byte that is not text
        if surrogate:
            where = f"the prompt is not UTF-8 at character {surrogate.start()}"
            raise ValueError(f"{where}; put it into a --prompt_file")
        opening = [tokenizer.end_of_text] if tokenizer.opens_prompts else []
        return [*opening, *tokenizer.encode(text).tolist()]
    if tokenizer.end_of_text is not None:
        start, name = [tokenizer.end_of_text], "the end-of-text token"
    else:  # the first of all characters: a line break, wherever the text has one
        start, name = [0], repr(tokenizer.decode([0]))
    if text is not None:
        print(f"the prompt is empty: starting from {name}", file=sys.stderr)
    return start


class Stream:
    """One text as its tokens come; where the trained length ends is marked on stderr."""

    def __init__(self, tokenizer: Tokenizer, trained: int, live: bool = True):
        """live: print each token at once; else keep the text until `end`."""
        self.tokenizer, self.trained, self.live = tokenizer, trained, live
        self.tokens: list[int] = []
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token: int) -> None:
        self.tokens.append(token)
        if self.live:
            self._print(token, len(self.tokens) - 1)

    def _print(self, token: int, place: int) -> None:
        if place == self.trained:
            sys.stdout.flush()
            print(f"\n[{self.trained} tokens: the trained length ends here]", file=sys.stderr)
        if place == 0 and token == self.tokenizer.end_of_text:
            return  # the mark of a start is not part of the text
        known = token < self.tokenizer.vocab_size  # a padded vocabulary has more rows than tokens
        raw = self.tokenizer.decode_bytes([token]) if known else b"\xff"
        print(self.decoder.decode(raw), end="", flush=self.live)

    def end(self) -> None:
        if not self.live:
            for place, token in enumerate(self.tokens):
                self._print(token, place)
        print(self.decoder.decode(b"", final=True), flush=True)


def sample(model: GPT, prompt: list[int], max_len: int, streams: list[Stream], args, window):
    """Print a text of max_len tokens a stream, all drawn as one batch. Returns the seconds."""
    idx = torch.tensor([prompt] * len(streams), device=next(model.parameters()).device)
    generators = [torch.Generator().manual_seed(args.seed + i) for i in range(len(streams))]
    for token in prompt:
        for stream in streams:
            stream.put(token)
    began, new = time.monotonic(), max_len - len(prompt)
    choice = args.temperature, args.top_k, args.top_p
    for tokens in model.generate(idx, new, *choice, generators, window):
        for stream, token in zip(streams, tokens.tolist(), strict=True):
            stream.put(token)
    seconds = time.monotonic() - began
    for i, stream in enumerate(streams):
        if i > 0:  # the first has been printed as it came
            print(f"[sample {i + 1} of {len(streams)}]", file=sys.stderr)
        stream.end()
    return seconds


def use_few_threads(model: GPT) -> None:
    """One thread for a small model: its products are too small to share."""
    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)


def window_of(args: Namespace, state: dict, config: GPTConfig) -> int | None:
    """Tokens that the model is shown at most: block_size under `--beyond slide`."""
    slides = args.beyond == "slide" or (args.beyond is None and state.get("window"))
    return config.block_size if slides else None


def main(argv: list[str]) -> None:
    args = parse(argv)
    state = checkpoint.read(args.run or checkpoint.newest_run())
    config = checkpoint.config_of(state)
    trained = config.block_size
    max_len = trained if args.max_len is None else length_of(args.max_len, config.train_len)
    window = window_of(args, state, config)
    config = scaled_config(config, args, max_len)
    tokenizer = from_meta(state.get("tokenizer"))
    prompt = prompt_of(args, tokenizer)
    if len(prompt) >= max_len:
        given = f"the prompt has {len(prompt)} tokens and max_len is {max_len}"
        raise ValueError(f"{given}; shorten the one or raise the other")
    device = pick_device(args.device)
    model = checkpoint.build(state, config).eval().to(device)
    use_few_threads(model)
    model.check_length(min(max_len, window or max_len))
    factor = f" x {config.rope_factor:g}" if config.rope_factor else ""
    beyond = f"slide ({window} tokens)" if window else config.beyond
    where = state["path"] + (f", step {state['iter']}" if "iter" in state else "")
    settings = f"rope_scaling {config.rope_scaling}{factor}, beyond {beyond}"
    if config.logit_scaling != "none":
        settings += f", logit_scaling {config.logit_scaling}"
    print(f"{where}: pos {config.pos}, trained at {trained}; {settings}", file=sys.stderr)
    count = args.num_samples
    if count > 1:
        print(f"[sample 1 of {count}]", file=sys.stderr)
    streams = [Stream(tokenizer, trained, live=i == 0) for i in range(count)]
    seconds = sample(model, prompt, max_len, streams, args, window)
    new = count * (max_len - len(prompt))
    speed = f"{new} tokens in {seconds:.1f} s, {new / seconds:.0f} a second"
    threads = f", {threads_in_use()}" if device.type == "cpu" else ""
    print(f"[{speed}{threads}]", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)

"""Files that others made: nothing of them is run, and nothing is read but what was named.

A payload that ran would leave the file `ran`.
"""

import ast
import contextlib
import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import sample
from data import DataError, prepare
from data.tokenizer import Char
from model import GPT, GPTConfig
from runtime import checkpoint, errors

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("configs/**/*.py")])


# Nothing that runs what it reads stands in the code


MODULES = set("pickle marshal shelve dill joblib yaml runpy code ctypes".split())
NAMES = {"exec", "eval", "compile", "__import__", "breakpoint"}
MEMBERS = set(
    "os.system os.popen subprocess.getoutput torch.hub torch.jit torch.package np.load numpy.load "
    "importlib.import_module extract extractall unpack_archive execl execv execvp spawnv".split()
)


def dangers(source: str) -> list[str]:
    """What in a source could run, unpack or unpickle something that it was given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [n for n in names if n in MEMBERS or n.partition(".")[0] in MODULES]
            found += [n for n in names if n == "torch.load" or n.rpartition(".")[2] in MEMBERS]
        elif isinstance(node, ast.Name):
            found += [node.id] if node.id in NAMES and isinstance(node.ctx, ast.Load) else []
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            found += [whole] if {whole, node.attr} & MEMBERS else []
        elif isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            whole = ast.unparse(node.func)
            if whole == "torch.load" and given.get("weights_only") != "True":
                found.append(whole)
            if {given.get(name, "False") for name in ("shell", "allow_pickle")} != {"False"}:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_read_is_ever_run(path):
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "exec(text)",
        "run = eval",
        "os.system('ls')",
        "from os import system",
        "run = os.popen",
        "import pickle as p",
        "from pickle import loads",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=safe)",
        "from torch import load",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "Popen(line, shell=yes)",
        "archive.extractall(folder)",
        "tarfile.open(f).extract(member)",
        "os.execv(path, words)",
        "importlib.import_module(name)",
        "__import__(name)",
    ],
)
def test_the_test_above_sees_what_it_looks_for(line):
    assert dangers(line)


def test_the_test_above_lets_pass_what_is_harmless():
    assert not dangers("torch.load(f, weights_only=True)\nmodel.eval()\nre.compile('a')")


# Ten payloads in a checkpoint whose hash is right


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def zipped(pickled: bytes) -> bytes:
    """The archive that torch.save makes, with another pickle in it."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save({"iter": 1, "w": torch.zeros(2)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


def legacy(pickled: bytes) -> bytes:
    """The format of torch before 1.6: pickles one after the other, in no archive."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


def scripted(pickled: bytes) -> bytes:
    """A TorchScript archive, which carries code by design."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/constants.pkl", pickled)
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/code/__torch__.py", "import os")
        archive.writestr("a/version", "3")
    return buffer.getvalue()


def in_protocol_0(line: str) -> bytes:
    return f"cos\nsystem\n(S'{line}'\ntR.".encode()


def by_inst(line: str) -> bytes:
    return f"(S'{line}'\nios\nsystem\n.".encode()


def by_obj(line: str) -> bytes:
    return f"(cos\nsystem\nS'{line}'\no.".encode()


def by_stack_global(line: str) -> bytes:
    words = (b"\x8c" + bytes([len(word)]) + word for word in (b"os", b"system"))
    return b"\x80\x04" + b"".join(words) + b"\x93" + pickle.dumps(line, 4)[2:-1] + b"\x85R."


TOUCH = "touch ran"
WRITES = "open('ran', 'w').close()"
PAYLOADS = {
    "reduce to os.system": zipped(pickle.dumps({"iter": Call(os.system, TOUCH)}, 2)),
    "eval": zipped(pickle.dumps(Call(eval, WRITES), 2)),
    "exec, deep in a state": zipped(pickle.dumps({"optimizers": [{0: Call(exec, WRITES)}]}, 4)),
    "Popen": zipped(pickle.dumps(Call(subprocess.check_call, ["touch", "ran"]), 2)),
    "os.mkdir": zipped(pickle.dumps({"model": Call(os.mkdir, "ran")}, 5)),
    "Path.touch": zipped(pickle.dumps(Call(Path.touch, Path("ran")), 2)),
    "text opcodes": zipped(in_protocol_0(TOUCH)),
    "INST": zipped(by_inst(TOUCH)),
    "OBJ": zipped(by_obj(TOUCH)),
    "STACK_GLOBAL": zipped(by_stack_global(TOUCH)),
    "before torch 1.6": legacy(pickle.dumps(Call(os.system, TOUCH), 2)),
    "TorchScript": scripted(in_protocol_0(TOUCH)),
}


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_payload_in_a_checkpoint_is_not_run(here, kind):
    """Row 19. The hash is right: it says who wrote the file as little as a lock does."""
    digest = hashlib.sha256(PAYLOADS[kind]).hexdigest()
    line = f"\nnanorope checkpoint 0001 sha256 {digest}\n"
    (here / "ckpt.pt").write_bytes(PAYLOADS[kind] + line.encode())
    for read in (checkpoint.load, lambda path: sample.main([f"--out_dir={path}"])):
        with pytest.raises(checkpoint.CheckpointError, match=r"ckpt\.pt was not loaded") as caught:
            read(str(here))
        assert errors.exit_code(caught.value) == errors.CHECKPOINT
    assert [path.name for path in here.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("kind", sorted(PAYLOADS.keys() - {"TorchScript"}))
def test_the_payloads_are_real(here, kind):
    """As most code reads such a file, each of them runs."""
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(PAYLOADS[kind]), weights_only=False)
    assert (here / "ran").exists()


# What is read is what was named


OPENED: list[Path] | None = None


def watch(event: str, args: tuple) -> None:
    if event == "open" and OPENED is not None and isinstance(args[0], str | bytes | os.PathLike):
        OPENED.append(Path(os.fsdecode(args[0])).absolute())


sys.addaudithook(watch)  # for the rest of the process: Python has no way to take it back


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """Every file that is opened during a test, but for Python's own modules."""
    files: list[Path] = []
    monkeypatch.setitem(globals(), "OPENED", files)
    return files


def foreign(files: list[Path], *allowed: Path) -> list[Path]:
    modules = (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(os.devnull), Path("/proc"))
    return [f for f in files if not any(f.is_relative_to(a) for a in (*modules, *allowed))]


def test_a_prompt_file_is_read_and_nothing_beside_it(here, opened):
    (here / "prompt.txt").write_text("to be")
    (here / "prompt.md").write_text("not this one")
    tokenizer = Char("to be")
    config = GPTConfig(block_size=8, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=4)
    state = checkpoint.describe(GPT(config)) | {"iter": 0, "tokenizer": tokenizer.to_meta()}
    checkpoint.save(here, state)
    opened.clear()
    sample.main([f"--out_dir={here}", "--prompt_file=prompt.txt"])
    assert here / "prompt.txt" in opened
    assert foreign(opened, here / "prompt.txt", here / "ckpt.pt") == []


def test_input_reads_the_files_that_were_named_and_writes_below_its_root(here, opened):
    for name in ("a.txt", "b.txt", "texts/c.md", "texts/d.html", "root/x"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(name * 50 + "acdbtxmhl./ " * len(name))
    opened.clear()
    prepare.prepare("own", [here / "a.txt", here / "texts"], root=here / "root")
    assert {here / "a.txt", here / "texts/c.md"} <= set(opened)
    assert foreign(opened, here / "a.txt", here / "texts/c.md", here / "root") == []


def test_a_link_out_of_an_input_folder_is_named_and_not_read(here, opened):
    (here / "texts").mkdir()
    (here / "texts/a.txt").write_text("a mill " * 50)
    (here / "secret.txt").write_text("the key " * 50)
    (here / "texts/b.txt").symlink_to(here / "secret.txt")
    opened.clear()
    with pytest.raises(DataError, match=r"b\.txt is a link out of --input .*texts: remove it"):
        prepare.prepare("own", [here / "texts"], root=here)
    assert here / "secret.txt" not in opened
    assert not (here / "own").exists()
    (here / "texts/b.txt").unlink()
    (here / "texts/b.txt").symlink_to(here / "texts/a.txt")  # inside: the same text twice
    with pytest.raises(DataError, match=r"the same text is in .*a\.txt and .*b\.txt"):
        prepare.prepare("own", [here / "texts"], root=here)

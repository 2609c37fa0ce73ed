"""Programs of a model against their tests: what is asked, what is taken, and what nobody gets out of."""

import dataclasses
import json
import os
import shutil
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.llamacpp.tasks import comparing
from bundler.errors import RecipeError, StepFailed
from bundler.plan import Step
from bundler.tasks.items import CodeItem, asked_code
from bundler.tasks.programs import probing
from bundler.tasks.programs.extracting import blocks_of, program_in
from bundler.tasks.programs.inside.names import free_names
from bundler.tasks.programs.inside.wire import decoded, encoded
from bundler.tasks.programs.probing import require_sandbox, sandbox_that_holds, weaknesses
from bundler.tasks.programs.running import verdict_on
from bundler.tasks.programs.sandbox import FILE_BYTES, Sandbox, found_sandbox
from bundler.tasks.programs.seccomp import KNOWN_MACHINES, filter_program
from bundler.tasks.reading_code import read_code
from tests.models import Shape, job, quantized, text_file, tiny_gguf
from tests.test_tasks import proved

CALM = Shape(hidden=64, feed_forward=96, vocabulary=320, heads=4, kv_heads=2, layers=2)
PROMPT = (
    'from typing import List\n\n\ndef double(values: List[int]) -> List[int]:\n    """Doubled."""\n'
)
TEST = """
def check(candidate):
    assert candidate([1, 2]) == [2, 4]
    assert candidate([]) == []
"""
RIGHT = "    return [2 * one for one in values]\n"
HUMAN = {"task_id": "H/1", "prompt": PROMPT, "entry_point": "double", "test": TEST,
         "canonical_solution": RIGHT}  # fmt: skip
MOSTLY = {"task_id": 7, "text": "Double a number.", "code": "def double(x):\n    return 2 * x",
          "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
          "test_setup_code": ""}  # fmt: skip

needs_sandbox = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bwrap") is None,
    reason="needs bubblewrap on Linux",
)


@pytest.fixture(scope="module")
def sandbox():
    return sandbox_that_holds()


def item(**changes):
    (one,) = read_code(json.dumps(HUMAN | changes).encode(), "x.jsonl")
    return one


def ending(sandbox, program, one=None, seconds=2):
    return verdict_on(textwrap.dedent(program), one or item(), sandbox, seconds).ending


# -- files ---------------------------------------------------------------------------------------------


def test_both_formats_are_read():
    human = item()
    assert (human.entry, human.defines, human.begins_program) == ("double", "double", True)
    assert human.solution == PROMPT + RIGHT
    (mostly,) = read_code(json.dumps(MOSTLY).encode(), "x.jsonl")
    assert (mostly.entry, mostly.defines, mostly.begins_program) == ("", "double", False)
    assert "assert double(2) == 4" in mostly.question
    assert mostly.solution == MOSTLY["code"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entry_point": None}, "x.jsonl:1: lacks entry_point: the name of the function"),
        ({"test": None}, "lacks test or test_list; it has: task_id, prompt"),
        ({"prompt": None}, "lacks prompt"),
        ({"prompt": 3}, "its prompt is no text"),
        ({"entry_point": "triple"}, "its prompt defines no function 'triple'"),
        ({"test": "def chek(c): pass"}, "its test defines no function 'check'"),
        ({"test": "def check(c:"}, "its test is no Python"),
        ({"prompt": "def double(\0"}, "its prompt is no Python"),
        ({"test": "def check(c): " + "(" * 5000}, "its test is no Python"),
        ({"test_list": []}, "its test_list is no list of 1 to 1,000 texts"),
        ({"test_list": [3]}, "its tests, or what stands before them, are no texts"),
        ({"test_list": ["assert abs(2) == 2"]}, "its tests call nothing that a program could define"),
        ({"test_list": ["assert ("]}, "its tests are no Python"),
    ],
)  # fmt: skip
def test_each_fault_of_a_row_has_its_own_words(changes, said):
    with pytest.raises(RecipeError) as caught:
        item(**changes)
    assert said in str(caught.value)


def test_a_task_that_comes_twice_is_named():
    rows = "\n".join(json.dumps(HUMAN) for _ in range(2))
    with pytest.raises(RecipeError, match=r"x.jsonl:2: is the task of row 1 again: 'H/1'"):
        read_code(rows.encode(), "x.jsonl")


def test_programs_do_not_come_as_csv():
    with pytest.raises(RecipeError, match=r"no file of such questions: JSON lines \(\.jsonl\) or"):
        read_code(b"task_id,prompt\n", "x.csv")


# -- what is asked, and what is taken from the answer ----------------------------------------------------


def test_a_model_without_a_template_gets_what_it_can_go_on_with():
    assert asked_code(item(), "", in_words=False) == PROMPT
    assert PROMPT.strip() in asked_code(item(), "", in_words=True)
    assert asked_code(item(), "Do: {question}", in_words=True) == "Do: " + PROMPT.strip()


@pytest.mark.parametrize(
    "written",
    [
        RIGHT,
        RIGHT + "\n\ndef other():\n    return 1\n",
        RIGHT + "\nprint(double([1]))\n",
        "Here it is:\n```python\ndef double(values):\n" + RIGHT + "```\nGood luck!",
        "```\ndef double(values):\n" + RIGHT,
        "Use:\n```python\nprint(double([1]))\n```\nof\n```python\ndef double(values):\n" + RIGHT + "```",
        "~~~py\ndef double(values):\n" + RIGHT + "~~~\n",
        "````python\ndef double(values):\n" + RIGHT + "```\n````\n".replace("```\n", "", 1),
        "def double(values):\n" + RIGHT + "\nassert double([3]) == [5]\n",
    ],
)  # fmt: skip
@needs_sandbox
def test_the_program_is_found_in_what_was_written(sandbox, written):
    program = program_in(written, item())
    assert ending(sandbox, program) == "passed", program


@given(st.text(alphabet="`~\npyx ", max_size=60))
def test_blocks_are_parts_of_what_was_written(written):
    assert all(block in written for block in blocks_of(written))


def test_what_a_test_takes_from_the_program_is_seen():
    source = "import math\nx = f(1)\ndef g(a): return h(a) + math.pi\nassert all(k(i) for i in x)"
    assert free_names(source) == ["f", "h", "k"]


# -- what goes between two sandboxes -----------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
    | st.frozensets(st.integers() | st.text()) | st.sets(st.integers()),
    max_leaves=20,
)  # fmt: skip


@given(values)
def test_plain_values_arrive_as_they_were(value):
    told = json.loads(json.dumps(encoded(value, lambda _: 0)))
    found = decoded(told, lambda _: None)
    assert found == value
    assert repr(type(found)) == repr(type(value))


def test_what_only_looks_like_a_number_arrives_as_one():
    class Always(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert decoded(encoded(Always(3), lambda _: 0), lambda _: None) != 4


@pytest.mark.parametrize("machine", KNOWN_MACHINES)
def test_every_jump_of_the_filter_ends_inside_it(machine):
    import struct

    steps = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    for place, (code, if_true, if_false, _) in enumerate(steps):
        if code in (0x15, 0x35):
            assert place + 1 + max(if_true, if_false) < len(steps)
    assert len(steps) < 256


# -- attacks -------------------------------------------------------------------------------------------------

ATTACKS = {
    "never ends": "def double(x):\n    while True: pass",
    "ignores its time": """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass""",
    "sleeps": "import time\ndef double(x):\n    time.sleep(10000)",
    "takes all memory": "def double(x):\n    return len(bytearray(8 << 30)) and [2 * i for i in x]",
    "takes memory bit by bit": """
        keep = []
        def double(x):
            while True: keep.append(bytearray(1 << 20))""",
    "forks without end": """
        import os
        def double(x):
            while True: os.fork()""",
    "starts threads": """
        import threading
        threading.Thread(target=print).start()
        def double(x): return [2 * i for i in x]""",
    "writes a gigabyte": """
        def double(x):
            with open('/tmp/x', 'wb') as f:
                for _ in range(1024): f.write(bytes(1 << 20))
            return [2 * i for i in x]""",
    "kills whom it can": """
        import os
        os.kill(-1, 9)
        def double(x): return [2 * i for i in x]""",
    "prints without end": "while True: print('x' * 1000)",
    "answers without end": """
        import os
        while True:
            for n in range(3, 20):
                try: os.write(n, b'{"value": 1}' * 1000)
                except OSError: pass""",
    "leaves before the tests": "import sys\nsys.exit(0)",
    "leaves in the tests": "import os\ndef double(x):\n    os._exit(0)",
    "raises an exit": "def double(x):\n    raise SystemExit(0)",
    "ends an iteration": "def double(x):\n    raise StopIteration",
    "is equal to everything": """
        class Yes:
            def __eq__(self, other): return True
            def __bool__(self): return True
        def double(x): return Yes()""",
    "is a list equal to everything": """
        class Yes(list):
            def __eq__(self, other): return True
        def double(x): return Yes()""",
    "mends the assertions": """
        import builtins, sys
        builtins.AssertionError = type('E', (BaseException,), {})
        builtins.all = lambda *a: True
        builtins.check = lambda candidate: None
        def check(candidate): pass
        sys.modules['inside.judge'] = sys
        def double(x): return []""",
    "waits for its end": """
        import atexit, os
        def fake():
            for n in range(1, 20):
                try: os.write(n, b'{"passed": true, "why": ""}')
                except OSError: pass
        atexit.register(fake)
        fake()
        def double(x): raise SystemExit""",
    "writes the verdict": """
        import os
        def double(x):
            for n in range(0, 64):
                try: os.write(n, b'{"passed": true, "why": ""}\\n')
                except OSError: pass
            os._exit(0)""",
    "looks at who called it": """
        import sys, gc
        def double(x):
            frame = sys._getframe()
            while frame:
                for name, value in {**frame.f_locals, **frame.f_globals}.items():
                    if 'passed' in repr(value) or 'assert' in repr(value): raise KeyError
                frame = frame.f_back
            return []""",
    "sends another's object": """
        import os, json
        os.write(4, json.dumps({"value": ["x", 1]}).encode() + b'\\n')
        def double(x): return []""",
    "nests its answer": """
        def double(x):
            found = []
            for _ in range(100000): found = [found]
            return found""",
    "is no program": "def double(x) return",
    "defines nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@needs_sandbox
def test_no_attack_passes_the_tests(sandbox, attack):
    assert ending(sandbox, ATTACKS[attack], seconds=1) in ("failed", "time")


@pytest.mark.parametrize("attack", ["never ends", "ignores its time"])
@needs_sandbox
def test_a_program_that_takes_too_long_is_said_to(sandbox, attack):
    assert ending(sandbox, ATTACKS[attack], seconds=1) == "time"


REACHES = {
    "a file of the system": "open('/etc/passwd').read()",
    "this program's own folder": "__import__('os').listdir({home!r})[0]",
    "the recipe's folder": "open({here!r}).read()",
    "other processes": "__import__('os').listdir('/proc')",
    "this process": "__import__('os').kill({process}, 0)",
    "the network": "__import__('socket').create_connection(('127.0.0.1', {port}), 2)",
    "a name on the network": "__import__('socket').getaddrinfo('localhost', 80)[0][9]",
    "another program": "__import__('subprocess').run(['/bin/true'])",
    "packages": "__import__('numpy')",
    "the environment": "__import__('os').environ['HOME']",
    "the interpreter's files": "open(__import__('os').__file__, 'w')",
    "its own starter": "open('/inside/judge.py', 'a')",
}


@pytest.mark.parametrize("what", REACHES)
@needs_sandbox
def test_a_program_reaches_nothing_outside(sandbox, what, tmp_path):
    """The function tells its tests what it could do: an exception of whatever kind, or that it could."""
    secret = tmp_path / "recipe.toml"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = REACHES[what].format(
            home=str(Path(__file__).parent), here=str(secret), process=os.getpid(),
            port=server.getsockname()[1],
        )  # fmt: skip
        program = f"def double(x):\n    try:\n        {reach}\n    except BaseException:\n        return 'no'\n    return 'yes'\n"
        said = "def check(candidate):\n    assert candidate(1) == 'no'\n"
        assert ending(sandbox, program, item(test=said)) == "passed"


# -- programs that are right ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("class Pair:\n    def __init__(s, a, b): s.a, s.b = a, b\n"
         "def most(ps): return max(p.a * p.b for p in ps)",
         ["assert most([Pair(1, 2), Pair(3, 4)]) == 12", "assert Pair(1, 2).a == 1"]),
        ("class Node:\n    def __init__(s, v): s.v, s.next = v, None\n"
         "def second(n): return n.next.v",
         ["root = Node(1)\nroot.next = Node(2)", "assert second(root) == 2"]),
        ("def odd(xs): return filter(lambda x: x % 2, xs)", ["assert list(odd([1, 2, 3])) == [1, 3]"]),
        ("def power(n): return 7 ** n", ["assert power(4000) == 7 ** 4000"]),
        ("from collections import Counter\ndef counted(s): return Counter(s)",
         ["assert counted('aab') == {'a': 2, 'b': 1}"]),
        ("def share(a, b): return a / b",
         ["assert math.isclose(share(1, 3), 0.3333, abs_tol=0.01)",
          "try:\n    share(1, 0)\n    raise AssertionError\nexcept ZeroDivisionError:\n    pass"]),
        ("import math, hashlib, re, decimal, random\ndef f(x): print(x); return {(1, x): {2.5, None}}",
         ["assert f(b'x') == {(1, b'x'): {2.5, None}}"]),
    ],
)  # fmt: skip
@needs_sandbox
def test_right_programs_pass(sandbox, program, tests):
    (one,) = read_code(json.dumps({"text": "?", "test_list": tests}).encode(), "x.jsonl")
    verdict = verdict_on(program, one, sandbox, 5)
    assert verdict.ending == "passed", verdict.why


@needs_sandbox
def test_helpers_of_the_question_are_the_files_own_in_the_tests(sandbox):
    """As HumanEval's `encode_cyclic`: a program that defines it anew does not bend its own tests."""
    prompt = "def shift(x):\n    return x + 1\n\ndef back(x):\n    '''Undo shift.'''\n"
    one = item(prompt=prompt, entry_point="back", canonical_solution="",
               test="def check(c):\n    assert c(shift(5)) == 5\n")  # fmt: skip
    assert ending(sandbox, prompt + "    return x - 1\n", one) == "passed"
    assert ending(sandbox, "def shift(x): return x\ndef back(x): return x\n", one) == "failed"


@needs_sandbox
def test_tests_that_ask_nothing_are_no_pass(sandbox):
    assert (
        ending(sandbox, PROMPT + RIGHT, item(test="def check(candidate):\n    pass\n")) == "failed"
    )


# -- whether the sandbox holds ---------------------------------------------------------------------------------


class Weakened(Sandbox):
    """A sandbox of which some flags are left out or added: what an old or broken bwrap would do."""

    left_out = ()
    added = ()

    def arguments(self, module, filter_from, *told):
        given = super().arguments(module, filter_from, *told)
        cut = given.index("--")
        flags, rest = given[:cut], given[cut:]
        for gone in self.left_out:
            places = range(len(flags))
            at = next(n for n in places if flags[n : n + len(gone)] == list(gone))
            del flags[at : at + len(gone)]
        at = flags.index("--chdir")
        return [*flags[:at], *self.added, *flags[at:], *rest]


@pytest.mark.parametrize(
    ("left_out", "added", "said"),
    [
        ((("--remount-ro", "/"),), ("--ro-bind", "/etc", "/etc"), "saw /etc/passwd"),
        ((("--remount-ro", "/"),), ("--proc", "/proc"), "saw /proc/self/maps"),
        ((("--clearenv",),), ("--setenv", "SECRET", "x"), "saw the environment (SECRET)"),
        ((("--remount-ro", "/"),), (), "wrote to /"),
        ((("--size", str(FILE_BYTES), "--tmpfs", "/tmp"), ("--remount-ro", "/")), ("--tmpfs", "/tmp"),
         "wrote more files than the limit"),
    ],
)  # fmt: skip
@needs_sandbox
def test_a_sandbox_with_a_hole_is_found_out(sandbox, left_out, added, said):
    kind = type("Hole", (Weakened,), {"left_out": left_out, "added": added})
    weak = kind(**{f.name: getattr(sandbox, f.name) for f in dataclasses.fields(sandbox)})
    assert any(said in one for one in weaknesses(weak))


@needs_sandbox
def test_without_its_filter_processes_and_the_network_are_found_out(sandbox):
    kind = type("Open", (Weakened,), {"left_out": (("--unshare-all",), ("--hostname", "sandbox"))})

    def unfiltered(self, module, filter_from, *told):
        given = Weakened.arguments(self, module, filter_from, *told)
        at = given.index("--seccomp")
        return given[:at] + given[at + 2 :]

    kind.arguments = unfiltered
    weak = kind(**{f.name: getattr(sandbox, f.name) for f in dataclasses.fields(sandbox)})
    found = list(weaknesses(weak))
    assert "reached the network" in found
    assert "saw another process" in found
    if os.getuid() == 0:  # the limit of processes holds for everybody else
        assert "started a process or thread" in found


@needs_sandbox
def test_a_bubblewrap_that_does_not_start_is_said_with_its_own_words(sandbox, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(StepFailed, match="No permissions to create new namespace") as caught:
        list(weaknesses(dataclasses.replace(sandbox, bubblewrap=str(broken))))
    assert "unprivileged_userns_clone" in caught.value.problems[0].hint


@needs_sandbox
def test_a_bubblewrap_that_only_runs_what_it_is_given_is_refused(tmp_path):
    """A wrapper that ignores every flag: nothing is believed for its name."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    with pytest.raises(StepFailed):
        sandbox_that_holds(str(tmp_path))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's own words")
def test_without_bubblewrap_it_is_said_what_to_install(tmp_path):
    with pytest.raises(StepFailed, match="there is no bwrap") as caught:
        found_sandbox(str(tmp_path))
    assert "install bubblewrap" in caught.value.problems[0].hint


@pytest.mark.parametrize(("name", "said"), [("platform", "this is"), ("machine", "processor")])
def test_other_systems_and_processors_are_refused(monkeypatch, tmp_path, name, said):
    if name == "platform":
        monkeypatch.setattr("bundler.tasks.programs.sandbox.sys.platform", "win32")
    else:
        monkeypatch.setattr("bundler.tasks.programs.sandbox.sys.platform", "linux")
        monkeypatch.setattr("bundler.tasks.programs.sandbox.platform.machine", lambda: "riscv64")
    with pytest.raises(StepFailed, match=said):
        found_sandbox(str(tmp_path / name))


def test_a_build_that_needs_a_sandbox_asks_for_it_before_anything_is_done(monkeypatch):
    def refuse():
        raise StepFailed("there is none")

    monkeypatch.setattr(probing, "sandbox_that_holds", refuse)
    plain = Step(name="a", plugin="x", action="prove", parameters={"tasks": [{"kind": "choice"}]})
    require_sandbox([plain, Step(name="b", plugin="x", action="quantize")])
    with pytest.raises(StepFailed, match="there is none"):
        require_sandbox(
            [plain, plain.model_copy(update={"parameters": {"tasks": [{"kind": "code"}]}})]
        )


# -- a model that writes programs ------------------------------------------------------------------------------


def code_file(folder, count=3, **changes):
    path = folder / "c.jsonl"
    rows = ({**HUMAN, "task_id": f"H/{n}", **changes} for n in range(count))
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


ASKED = {"name": "c", "kind": "code", "file": "c.jsonl", "scoring": "tests", "prompt": "", "items": 9,
         "seed": 1, "tokens": 8, "seconds": 2, "minutes": 30}  # fmt: skip


@needs_sandbox
def test_a_proof_runs_what_both_models_write(tmp_path):
    reference = tiny_gguf(CALM)
    inputs = {"model.gguf": quantized(reference, "Q8_0"), "reference.gguf": reference,
              "heldout.txt": text_file(), "tasks/c": code_file(tmp_path)}  # fmt: skip
    found = proved(tmp_path / "one", inputs, [ASKED])
    (task,) = found.tasks
    assert (task.kind, task.scoring, task.items, task.chance) == ("code", "tests", 3, 0)
    assert (task.model_right, task.control_right) == (0, 0)  # random numbers write no programs
    assert not any("own solutions" in note for note in found.notes)


@needs_sandbox
def test_a_model_whose_programs_pass_has_them_counted(tmp_path):
    """The tests ask of the beginning only what stands in it: whatever a model adds, some pass."""
    prompt = "def ready(): return 7\n\ndef double(x):\n    '''Nothing.'''\n#"
    file = code_file(tmp_path, prompt=prompt, test="def check(c):\n    assert c(1) is None\n")
    given = {
        "model": str(tiny_gguf(CALM)), "title": "model.gguf", "file": str(file), "path": "c.jsonl",
        "kind": "code", "items": 100, "seed": 1, "scoring": "tests", "prompt": "", "tokens": 1,
        "context_tokens": 512, "parallel": 1, "kv_cache": "f16", "gpu": False, "gpu_layers": 0,
        "adapters": [], "seconds": 900, "cpu_seconds": 5,
    }  # fmt: skip
    found = job("tasks.programming:program_job", given)
    assert found == {"right": [True] * 3, "endings": {"passed": 3}}


@needs_sandbox
def test_solutions_that_do_not_pass_their_own_tests_are_said(tmp_path):
    reference = tiny_gguf(CALM)
    inputs = {"model.gguf": reference, "reference.gguf": reference, "heldout.txt": text_file(),
              "tasks/c": code_file(tmp_path, canonical_solution="    return 1\n")}  # fmt: skip
    found = proved(tmp_path / "one", inputs, [ASKED])
    assert any(
        "c: 3 of 3 of the file's own solutions do not pass their own tests here (rows 1, 2, 3)" in n
        for n in found.notes
    )


def test_stopped_programs_are_said():
    (said,) = comparing._stopped_note("c", {"endings": {"time": 2}}, {"endings": {"failed": 1}})
    assert "2 of the model's, 0 of the unquantized model's" in said
    assert comparing._stopped_note("c", {}, {}) == []


def test_a_task_without_words_of_its_own_leaks_by_its_solution():
    from bundler.tasks.items import words_of

    assert "return [2 * one" in words_of(item())
    assert isinstance(item(), CodeItem)

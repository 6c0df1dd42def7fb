"""A command with its values taken out: the same for the siblings of a sweep, and for them only."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartsched.core.shapes import LONGEST, shape_of

SECRETS = ["sk-proj-AbCdEf", "hunter", "Bearer xyzzy"]


@pytest.mark.parametrize(
    ("command", "shape"),
    [
        ("python train.py", "python train.py"),
        (
            "python train.py --lr 0.1 --bs=32 seed=3 out/run_17/x.pt",
            "python train.py --lr * --bs=* seed=* out/run_*/x.pt",
        ),
        # values of options, words and numbers alike
        ("python train.py --model bert -o out", "python train.py --model * -o *"),
        ("python train.py --lr -0.5 -t -.5", "python train.py --lr * -t *"),
        ("python train.py --gpus 0 1 2 3", "python train.py --gpus *"),
        ("python train.py --fp16 --beta1 0.9 --x", "python train.py --fp16 --beta1 * --x"),
        ("make -j8 all -O2 x", "make -j* all -O* x"),
        ("tool -- file -", "tool -- file -"),
        ("python train.py model=bert +a.b1=c ~x", "python train.py model=* +a.b*=* ~x"),
        # scripts and modules behind flags
        ("python -u train.py --cfg a.py", "python -u train.py --cfg *"),
        ("python -m pkg.train --cfg a.py", "python -m pkg.train --cfg *"),
        ("torchrun --standalone train.py", "torchrun --standalone train.py"),
        (
            "python -m torch.distributed.run --use_env train.py --cfg a.py",
            "python -m torch.distributed.run --use_env train.py --cfg *",
        ),
        ("torchrun --standalone -m pkg.train", "torchrun --standalone -m pkg.train"),
        ("python3.11 -m pkg.train2", "python* -m pkg.train*"),
        ("python train.py -m bert", "python train.py -m *"),
        ("./train -m bert", "./train -m *"),
        ("python -c 'import x; x.y()'", "python -c *"),
        # numbers in other words
        ("python train_v2.py", "python train_v*.py"),
        ("./run3d resnet50 1e-4 2024-01-31 12:30", "./run* resnet* *"),
        ("eval ckpt/3f9a2c1d/step=100", "eval ckpt/*/step=*"),
        ("eval ckpt-3f9a2c1d_0.25.pt v1.2.3", "eval ckpt-*.pt v*"),
        ("timeout 1h30m python3.11 t.py", "timeout * python* t.py"),
        ("cp * a-1,2,3.txt", "cp * a-*.txt"),
        # the environment
        ("A=1 B='x y' python train.py", "A=* B=* python train.py"),
        ("env A=1 python train.py", "env A=* python train.py"),
        # quotes and expansions
        ("python 'train.py' --lr '0.1'", "python train.py --lr *"),
        ('python "tra"in.py "two words" it\\\'s', "python train.py *"),
        ("python $HOME/t.py ${X:-3} $(date +%s) `id`", "python */t.py *"),
        ("echo 'not closed", "echo *"),
        # structure
        ("cd exp1&&python t.py|tee log 2>&1", "cd exp* && python t.py | tee log 2>&1"),
        ("python t.py > a.log 2>b.log < c", "python t.py > * 2> * < *"),
        ("python t.py &> a >>b 12>c 123>d", "python t.py &> * >> * 12> * * > *"),
        ("a; (b) & c || d\ne", "a ; ( b ) & c || d ; e"),
        ("for s in 1 2 3; do python t.py $s; done", "for s in * ; do python t.py * ; done"),
        (
            "bash -lc 'A=3 python t.py --lr 1 | tee x_1'",
            "bash -lc 'A=* python t.py --lr * | tee x_*'",
        ),
        ("bash -c 'bash -c \"echo hi\"'", "bash -c 'bash -c *'"),
        # comments
        ("python t.py # lr 0.1", "python t.py"),
        ("python t.py # smartsched: gpus=2", "python t.py"),
        ("python t.py a#b '#c'", "python t.py a#b *"),
        ("", ""),
    ],
)
def test_the_shape_of_a_command(command: str, shape: str):
    assert shape_of(command) == shape
    assert shape_of(shape) == shape


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("python train.py --model resnet50", "python train.py --model resnet152"),
        ("python train.py --model resnet50", "python train.py --model vit"),
        ("python train.py --name 'a b'", 'python train.py  --name "c"'),
        ("LR=1 python train.py > a", "LR=2  python train.py  > b/c"),
        ("python train.py out/a1b2c3d", "python train.py out/0123456"),
        ("python train.py x=1,2", "python train.py x=[1,2,3]"),
        ("python train.py a  # smartsched: gpus=2", "python train.py a # smartsched: mem=4G"),
        ("python train.py --layers 64 64", "python train.py --layers 32"),
    ],
)
def test_siblings_have_the_same_shape(one: str, other: str):
    assert shape_of(one) == shape_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("python train.py --lr 1", "python eval.py --lr 1"),
        ("python -u train.py", "python -u eval.py"),
        ("python -m train", "python -m eval"),
        ("python train2.py", "python eval2.py"),
        ("accelerate launch --multi_gpu train.py", "accelerate launch --multi_gpu eval.py"),
        ("bash -c 'python train.py'", "bash -c 'python eval.py'"),
        ("python train.py --fp16", "python train.py --fp32"),
        ("python main.py train", "python main.py eval"),
        ("python a.py && python b.py", "python a.py"),
        ("python a.py | tee x", "python a.py > x"),
        ("python a.py --lr 1", "python a.py lr=1"),
    ],
)
def test_other_programs_have_other_shapes(one: str, other: str):
    assert shape_of(one) != shape_of(other)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "command",
    [
        "python t.py --api-key '{}'",
        "python t.py --api-key='{}'",
        "python t.py -k '{}'",
        "./train -m '{}'",
        "TOKEN='{}' python t.py",
        "export TOKEN='{}'; python t.py",
        "python t.py auth.token='{}'",
        "curl -H 'Authorization: {}' x",
        "curl 'https://user:{}@host/'",
        "curl 'https://host/?token={}'",
        "bash -c 'TOKEN=\"{}\" python t.py'",
        "login <<< '{}'",
        "echo $(get '{}') `get '{}'`",
        "python t.py # '{}'",
    ],
)
def test_what_was_passed_as_a_value_does_not_stay(command: str, secret: str):
    shape = shape_of(command.replace("{}", secret))

    assert not [word for word in secret.split() if word in shape]


PIECES = st.sampled_from(
    ["--lr", "-m", "-c", "-n4", "--", "-", "-1", "0.1", "x=1", "a.py", "run_17", "deadbeef01",
     "'a b'", '"', "'", "\\", "$", "$(", ")", "`", "${", "}", "#", ">", "2>&1", "&>", "<<<", "2",
     "|", "&&", ";", "\n", "\t", " ", "…", "…abcdefghijklmnop", "bash", "bash -c ", "python", "*",
     "~", "é", "٣", "²", "\udcff", "\x00", "\u00a0", "@", "://", "=", "+", "-", "."]
)  # fmt: skip


@given(st.text() | st.lists(PIECES | st.just(" "), max_size=120).map("".join))
def test_the_shape_of_a_shape_is_itself(command: str):
    shape = shape_of(command)

    assert shape_of(shape) == shape
    assert len(shape) <= LONGEST
    assert shape.isprintable()


WORDS = st.lists(st.sampled_from(["python", "t.py", "--lr", "0.1", "'a b'", "x=1", ">", "&&"]))


@given(WORDS.map(" ".join))
def test_a_directive_is_no_part_of_it(command: str):
    assert shape_of(f"{command} # smartsched: gpus=2 name=x") == shape_of(command)


def test_what_is_too_long_keeps_its_beginning_and_is_told_from_others():
    options = " ".join(f"--option-{n} {n}" for n in range(99))
    one, sibling = f"python a.py {options} end", f"python a.py {options}1 end"

    assert shape_of(one) == shape_of(sibling)
    assert shape_of(one) != shape_of(f"python a.py {options} other")
    assert shape_of(one).startswith("python a.py --option-0 * --option-1 *")
    assert len(shape_of(one)) <= LONGEST
    assert shape_of(shape_of(one)) == shape_of(one)


@pytest.mark.parametrize("unit", ["a", "'", '"', "\\", "$(", "`", "${", "1a", "a1 ", "#", "<", "-"])
def test_a_long_command_takes_no_long_time(unit: str):
    command = "x " + unit * (2**20 // len(unit))
    began = time.perf_counter()

    shape_of(command)

    assert time.perf_counter() - began < 2

"""The shape of a command: the command with its values taken out.

What the siblings of a sweep used is remembered under their shape, so it must be the same for all
of them and another for another program; and it is written to a file, so it holds none of what was
passed as a value. Out go:

- the value of an option (`--lr 0.1`, `--bs=32`, `-o x`), of an assignment (`FOO=1`, `seed=3`), of a
  redirection, of a `$variable` or `$(substitution)`: numbers and words alike;
- numbers, hashes and dates in any other word: `out/run_17/x.pt` is `out/run_*/x.pt`;
- any word with a blank or another character that has to be quoted, and comments.

The names of options, subcommands and scripts stay. An option is taken to have a value if a word
follows that is none itself; but the first script (`train.py`) stays also behind a flag (`-u`,
`--multi_gpu`), as does the module of `python -m`, and a script in `bash -c '...'` is gone into.
A secret that is a positional word, or sticks to a one-letter option (`-pSECRET`), may stay.
"""

import re
from functools import lru_cache

LONGEST = 300
_LONGEST_READ = 8192  # of what follows, siblings need not agree
_LONGEST_RUN = 32  # letters without a break: no name that a person would give

_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<copy>\d{0,2}[<>]&(?:\d{1,2}-?|-)(?=[\s;&|()<>]|$))
      | (?P<redirection>&>>?|(?:\d{1,2}(?=[<>]))?(?:<<<|<<-?|<>|<&|<|>>|>\||>&|>))
      | (?P<operator>&&|\|\||;;|;&|\|&|[;&|()\n])
      | (?P<word>(?:[^ \t\n;&|()<>'"\\`$]+|'[^']*'?|"(?:[^"\\]|\\.)*"?|\\.?
                  |`[^`]*`?|\$\([^()]*\)|\$\{[^}]*\}?|\$)+)""",
    re.VERBOSE | re.DOTALL,
)
_SPECIAL = re.compile(r"""['"\\`$]""")
_QUOTED = re.compile(r"""'([^']*)'?|"((?:[^"\\]++|\\.)*+)"?|\\(.?)""", re.DOTALL)
_EXPANSION = re.compile(r"`[^`]*`?|\$(?:\([^()]*\)|\{[^}]*\}?|\w+|[@*#?!$-])?")
_LITERAL = re.compile(r"""(?!\#)[^\s'"\\;&|()<>`$]+""")
_NEGATIVE = re.compile(r"-\.?\d")
_NAME = re.compile(r"[+~-]*[\w./@*-]+")
_LONG_OPTION = re.compile(r"--[^\W\d][\w.-]{0,60}")
_RUN = re.compile(r"[^\W_]+")
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{7,}")
_NUMBERED = re.compile(r"([^\W\d_]+)\d+|([^\W\d_]{2,})\d+[^\W\d_]{1,2}")  # train2, run3d
_SEVERAL = re.compile(r"\*(?:[-.:,_+]?\*)+")
_HAS_NUMBER = re.compile(r"[\d*]")
_CREDENTIALS = re.compile(r"//[^/@]*@")
_SCRIPT = re.compile(r"\.(?:py|sh|bash|zsh|jl|[rR]|pl|rb|lua|js|m|ipynb)$")
_MODULE = re.compile(r"[\w.*]+")
_RUNS_MODULES = re.compile(r"(?:^|/)(?:python|pypy|torchrun|launch|run)\**$")
_LAUNCHER = re.compile(r"(?:^|[._])(?:launch(?:er)?|run|torchrun)$")
_SHELL = re.compile(r"(?:^|/)(?:ba|da|k|z)?sh$")
_RUNS_TEXT = re.compile(r"-[a-z]*c")
_CUT = re.compile(r"…[a-p]{16}")
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


@lru_cache(maxsize=4096)  # of other people's programs it is asked for again and again
def shape_of(command: str) -> str:
    """At most `LONGEST` printable characters; the shape of a shape is itself."""
    return _bounded(_Reader(goes_into_scripts=True).tokens(command[:_LONGEST_READ]))


class _Reader:
    """Goes through a command from left to right and knows what the next word can be."""

    def __init__(self, goes_into_scripts: bool) -> None:
        self._goes_into_scripts = goes_into_scripts
        self._begin()

    def _begin(self) -> None:
        """A command of its own: at the start and behind each operator."""
        self._option = ""  # that a value may follow
        self._is_target = False  # the next word is a file to redirect to
        self._knows_program = False  # a script or module was named
        self._last = ""  # positional word

    def tokens(self, command: str) -> list[str]:
        found: list[str] = []
        is_list = False  # of values, of any length
        for token in _TOKEN.finditer(command):
            kind, text = token.lastgroup, token[0]
            if kind == "word":
                is_target = self._is_target
                text = self._word(text)
                if text == "*" and is_list:
                    continue
                is_list = text == "*" and not is_target
            elif kind == "operator":
                self._begin()
                text = ";" if text == "\n" else text
            elif kind == "redirection":
                self._is_target = True
            elif kind == "comment":
                continue
            if kind != "word":
                is_list = False
            found.append(text)
        return found

    def _word(self, text: str) -> str:
        if _SPECIAL.search(text):
            text = _unquoted(text)
        if text.startswith("…") and _CUT.fullmatch(text):
            return text
        if self._is_target:
            self._is_target = False
            return "*"
        if len(text) > 1 and text[0] == "-":
            option, text = _option(text)
            if text != "*":
                self._option = option
                return text
        option, self._option = self._option, ""
        return self._value(option, text) if option else self._positional(text)

    def _value(self, option: str, text: str) -> str:
        if self._goes_into_scripts and _RUNS_TEXT.fullmatch(option) and _SHELL.search(self._last):
            return _script(text)
        if not self._knows_program:
            if option == "-m" and _RUNS_MODULES.search(self._last) and _MODULE.fullmatch(text):
                shown = _literal(text)
                self._knows_program = shown != "*" and not _LAUNCHER.search(shown)
                return shown
            if _SCRIPT.search(text) and "=" not in text:
                return self._positional(text)
        return "*"

    def _positional(self, text: str) -> str:
        name, equals, _ = text.partition("=")
        if equals:
            return f"{_literal(name)}=*" if _NAME.fullmatch(name) else "*"
        shown = _literal(text)
        if shown != "*":
            self._last = shown
        if _SCRIPT.search(shown):
            self._knows_program = True
        return shown


def _script(text: str) -> str:
    """The shape of what a shell is told to run, as one word."""
    inner = " ".join(_Reader(goes_into_scripts=False).tokens(text))
    return "'*'" if inner.startswith(("-", "…")) else f"'{inner}'"  # such a word is read otherwise


def _option(text: str) -> tuple[str, str]:
    """The option that the next word may be the value of, "" if none; and what to show.

    The latter is `*` for what only looks like one.
    """
    if _NEGATIVE.match(text):
        return "", "*"
    name, equals, _ = text.partition("=")
    if not _LONG_OPTION.fullmatch(name):  # --beta1 and --fp16 are names, -j8 has a value
        name = _literal(name)
    if equals and name != "*":
        return "", f"{name}=*"
    return ("" if "*" in name or name == "--" else name), name


def _unquoted(text: str) -> str:
    bare = _QUOTED.sub(lambda part: part[1] or part[2] or part[3] or "", text)
    return _EXPANSION.sub("*", bare)


def _literal(word: str) -> str:
    """The word without its numbers; `*` if a shell could not read it back as one word."""
    if not _LITERAL.fullmatch(word) or not word.isprintable():
        return "*"
    if "@" in word:
        word = _CREDENTIALS.sub("//*@", word)
    if len(word) > _LONGEST_RUN or _HAS_NUMBER.search(word):
        word = _SEVERAL.sub("*", _RUN.sub(_without_number, word))
    return word


def _without_number(run: re.Match[str]) -> str:
    text = run[0]
    if len(text) > _LONGEST_RUN or _HASH.fullmatch(text):
        return "*"
    if not _HAS_NUMBER.search(text):
        return text
    numbered = _NUMBERED.fullmatch(text)
    return f"{numbered[1] or numbered[2]}*" if numbered else "*"


def _bounded(tokens: list[str]) -> str:
    whole = " ".join(tokens)
    if len(whole) <= LONGEST:
        return whole
    from hashlib import blake2b  # takes longer to load than all the rest of it

    # letters only: a number in it would be taken out when it is read again
    digest = blake2b(whole.encode(), digest_size=8).hexdigest().translate(_LETTERS)
    kept, length = [], len(digest) + 1
    for token in tokens:
        length += len(token) + 1
        if length > LONGEST:
            break
        kept.append(token)
    return " ".join([*kept, f"…{digest}"])

"""All commands that a template and the values of its parameters make, or some of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from smartsched.core.directives import wishes_in
from smartsched.core.grid.shuffle import shuffled
from smartsched.core.grid.template import Place, check_is_command, names_in, parse_template
from smartsched.core.grid.values import Values
from smartsched.core.words import count, shortened
from smartsched.errors import UsageError

# As many quoted values are kept of each parameter, not to be worked out for each command.
_MOST_KEPT = 10_000


class Search:
    """The combinations of parameters, numbered as nested loops go: the last one turns fastest."""

    def __init__(
        self, template: str, parameters: Mapping[str, Values], zipped: Iterable[Sequence[str]] = ()
    ) -> None:
        """`zipped`: groups of parameters that go together, first with first and so on.

        Raises UsageError for whatever would not make a list of commands.
        """
        parts = parse_template(template)
        _check_names(names_in(parts), parameters)
        check_is_command(parts, lambda name: parameters[name].given)
        axes = _axes(parameters, list(zipped))[::-1]  # the last one turns fastest
        axis_of = {name: number for number, names in enumerate(axes) for name in names}
        self._sizes = [parameters[names[0]].count for names in axes]
        self._form = "".join(
            part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts
        )
        self._slots = [
            (axis_of[part.name], _quoted(part, parameters[part.name]))
            for part in parts
            if isinstance(part, Place)
        ]
        self._distributions = [n for n, values in parameters.items() if values.is_distribution]
        self.count = math.prod(self._sizes)
        wishes_in(self.command(0))

    def command(self, number: int) -> str:
        """That of a combination, from 0 to count - 1."""
        positions = []
        for size in self._sizes:
            number, position = divmod(number, size)
            positions.append(position)
        return self._form % tuple([text(positions[axis]) for axis, text in self._slots])

    def in_order(self, most: int | None = None) -> Iterator[str]:
        """All of them, or the first so many. Raises UsageError."""
        if self._distributions:
            name = self._distributions[0]
            raise UsageError(f"{name} is sampled: that goes without --sampling-mode grid")
        return self._commands(range(self.count), most)

    def at_random(self, seed: int, most: int | None = None) -> Iterator[str]:
        """All of them, or a sample of so many, none twice; a larger sample begins with a smaller.

        Raises UsageError.
        """
        if self._distributions and most is None:
            name = self._distributions[0]
            raise UsageError(f"{name} is sampled: say how often with --n-samples")
        return self._commands(shuffled(self.count, seed), most)

    def _commands(self, numbers: Iterable[int], most: int | None) -> Iterator[str]:
        if most is not None and most > self.count:
            there_are = count(self.count, "combination")
            raise UsageError(f"--n-samples {most} is more than there are: {there_are}")
        return map(self.command, islice(numbers, most))


def _check_names(places: Sequence[str], parameters: Mapping[str, Values]) -> None:
    for name in places:
        if name not in parameters:
            what = f"for {{{name}}} there are no values"
            raise UsageError(
                f"{what}: add -p {name} VALUE..., or write {{{{{name}}}}} if braces are meant"
            )
    if not parameters:
        raise UsageError("there is no parameter: write {NAME} in the template, -p NAME VALUE...")
    for name in parameters:
        if name not in places:
            raise UsageError(f"-p {name} is not used: there is no {{{name}}} in the template")


def _axes(
    parameters: Mapping[str, Values], zipped: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Which parameters go together, in the order of the first of each."""
    group_of: dict[str, tuple[str, ...]] = {name: (name,) for name in parameters}
    seen: set[str] = set()
    for names in zipped:
        _check_zip(names, parameters, seen)
        seen.update(names)
        group_of.update(dict.fromkeys(names, tuple(names)))
    return list(dict.fromkeys(group_of.values()))


def _check_zip(names: Sequence[str], parameters: Mapping[str, Values], seen: set[str]) -> None:
    if len(names) < 2:
        raise UsageError("--zip needs two parameters or more")
    for number, name in enumerate(names):
        if name not in parameters:
            raise UsageError(f"--zip: there is no parameter {shortened(name, 40)!r}")
        if name in seen or name in names[:number]:
            raise UsageError(f"--zip: {name} is there twice")
        if parameters[name].is_distribution:
            raise UsageError(f"--zip: {name} is sampled, and has no order to go by")
    first, *others = names
    for other in others:
        if parameters[other].count != parameters[first].count:
            counts = f"{parameters[first].count:,} values and {other} {parameters[other].count:,}"
            raise UsageError(f"--zip: {first} has {counts}")


def _quoted(place: Place, values: Values) -> Callable[[int], str]:
    if values.count <= _MOST_KEPT:
        kept = tuple(place.quote(values.text(position)) for position in range(values.count))
        return kept.__getitem__
    return lambda position: place.quote(values.text(position))

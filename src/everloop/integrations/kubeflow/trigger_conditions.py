"""Conditions of tasks: the part of the Common Expression Language (CEL) that compiled pipelines use.

    int(inputs.parameter_values['pipelinechannel--n']) > 3 && !(inputs.parameter_values['flag'] == true)

Values, `inputs.parameter_values[…]`, the conversions `int`, `double`, `string` and `bool`, comparisons, `in`,
arithmetic, `!`, `&&`, `||` and brackets. Precedence as in CEL's language definition. Nothing else is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.records import Json

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+|\d+(?:[eE][+-]?\d+)?)
    |(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[<>!()\[\].,+\-*/%]))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_DEEPEST = 100


def evaluate(condition: str, parameters: Mapping[str, Json]) -> bool:
    """Evaluate a condition.

    Args:
        parameters: the task's input parameters.

    Raises:
        UsageError: the condition uses something that is not supported, names a parameter that the task does not
            have, or compares values of different kinds by order.
    """
    reader = _Reader(condition, parameters)
    value = reader.either(0)
    reader.expect_end()
    if not isinstance(value, bool):
        raise reader.error(f"its value is {value!r}, not true or false")
    return value


class _Reader:
    """Evaluates while it parses. Each method reads one level of precedence."""

    def __init__(self, text: str, parameters: Mapping[str, Json]) -> None:
        self.text = text
        self.parameters = parameters
        self.tokens = self._split()
        self.at = 0

    def error(self, why: str) -> UsageError:
        return UsageError(
            f"Cannot evaluate the condition '{self.text}': {why}.",
            help="Compile the pipeline again with a condition that compares parameters.",
        )

    def expect_end(self) -> None:
        if self.at < len(self.tokens):
            raise self.error(f"'{self.tokens[self.at][1]}' is not expected there")

    def either(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self.error("it is nested too deeply")
        value = self._both(depth)
        while self._take("||"):
            other = self._both(depth)
            value = self._truth(value) or self._truth(other)
        return value

    def _both(self, depth: int) -> Any:
        value = self._comparison(depth)
        while self._take("&&"):
            other = self._comparison(depth)
            value = self._truth(value) and self._truth(other)
        return value

    def _comparison(self, depth: int) -> Any:
        value = self._sum(depth)
        while (sign := self._take("==", "!=", "<=", ">=", "<", ">", "in")) is not None:
            value = self._compare(value, sign, self._sum(depth))
        return value

    def _sum(self, depth: int) -> Any:
        value = self._product(depth)
        while (sign := self._take("+", "-")) is not None:
            value = self._calculate(value, sign, self._product(depth))
        return value

    def _product(self, depth: int) -> Any:
        value = self._unary(depth)
        while (sign := self._take("*", "/", "%")) is not None:
            value = self._calculate(value, sign, self._unary(depth))
        return value

    def _unary(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self.error("it is nested too deeply")
        if self._take("!"):
            return not self._truth(self._unary(depth + 1))
        if self._take("-"):
            return self._calculate(0, "-", self._unary(depth + 1))
        return self._value(depth)

    def _value(self, depth: int) -> Any:
        if self.at == len(self.tokens):
            raise self.error("it ends too early")
        kind, word = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return float(word) if any(mark in word for mark in ".eE") else int(word)
        if kind == "text":
            return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), word[1:-1])
        if word == "(":
            value = self.either(depth + 1)
            self._expect(")")
            return value
        if kind == "name":
            return self._named(word, depth)
        raise self.error(f"'{word}' is not expected there")

    def _named(self, name: str, depth: int) -> Any:
        if name in ("true", "false"):
            return name == "true"
        if name == "null":
            return None
        if name == "inputs":
            return self._parameter()
        if name in _CONVERSIONS:
            self._expect("(")
            value = self.either(depth + 1)
            self._expect(")")
            try:
                return _CONVERSIONS[name](value)
            except (ValueError, TypeError) as error:
                raise self.error(f"{value!r} cannot be converted to {name}") from error
        raise self.error(f"'{name}' is not supported")

    def _parameter(self) -> Any:
        self._expect(".")
        self._expect("parameter_values")
        if self._take("."):
            name = self.tokens[self.at][1] if self.at < len(self.tokens) else ""
            self.at += 1
        else:
            self._expect("[")
            name = self._value(0)
            self._expect("]")
        if name not in self.parameters:
            raise self.error(f"the task has no parameter {name!r}")
        return self.parameters[name]

    def _compare(self, left: Any, sign: str, right: Any) -> bool:
        if sign == "in":
            if not isinstance(right, list | dict | str):
                raise self.error(f"{right!r} contains nothing")
            return left in right
        if sign in ("==", "!="):
            same = _is_number(left) == _is_number(right) and isinstance(left, bool) == isinstance(right, bool)
            return (same and left == right) == (sign == "==")
        if not (_is_number(left) and _is_number(right)) and not (isinstance(left, str) and isinstance(right, str)):
            raise self.error(f"{left!r} and {right!r} have no order")
        orders: dict[str, Callable[[Any, Any], bool]] = {
            "<": lambda a, b: a < b,
            ">": lambda a, b: a > b,
            "<=": lambda a, b: a <= b,
            ">=": lambda a, b: a >= b,
        }
        return orders[sign](left, right)

    def _calculate(self, left: Any, sign: str, right: Any) -> Any:
        if sign == "+" and type(left) is type(right) and isinstance(left, str | list):
            return left + right
        if not (_is_number(left) and _is_number(right)):
            raise self.error(f"'{sign}' does not apply to {left!r} and {right!r}")
        if sign in "/%" and right == 0:
            raise self.error("it divides by zero")
        if sign in "/%" and isinstance(left, int) and isinstance(right, int):
            # CEL rounds towards zero, and the remainder has the sign of the dividend.
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            return quotient if sign == "/" else left - right * quotient
        return {"+": left + right, "-": left - right, "*": left * right}.get(sign) if sign in "+-*" else left / right

    def _truth(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.error(f"{value!r} is not true or false")
        return value

    def _take(self, *signs: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at][0] != "text" and self.tokens[self.at][1] in signs:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def _expect(self, sign: str) -> None:
        if self._take(sign) is None:
            raise self.error(f"'{sign}' is missing")

    def _split(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        at = 0
        text = self.text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"'{text[at : at + 10].strip()}' is not supported")
            found.append((str(match.lastgroup), match[str(match.lastgroup)]))
            at = match.end()
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or value is None:
        raise TypeError(value)
    return int(value)


def _to_text(value: Any) -> str:
    from everloop.integrations.kubeflow.parameter_values import as_text

    return as_text(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "True", "false", "False"):
        return bool(value in ("true", "True"))
    raise TypeError(value)


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "int": _to_int,
    "double": float,
    "string": _to_text,
    "bool": _to_bool,
}

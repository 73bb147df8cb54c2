"""Expressions of sizes in a stranger's program, which torch gives to sympy, which evaluates them.

They are parsed, and may only use symbols, numbers, arithmetic and torch's own shape functions. What
passes is also small when it is computed: ``9**9**9`` is nine signs and 370 million digits.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

LONGEST = 20_000
"""Signs of one expression; those of a network of free height and width have some hundreds."""
MOST_NODES = 3000
"""Of its tree."""
DEEPEST = 60
"""Levels of its tree."""
LARGEST = 2**62
"""Number in it: sizes have 64 bits."""
LARGEST_EXPONENT = 64
"""Also by how many bits something is shifted."""

_SYMBOL = re.compile(r"[a-z]{1,3}\d+")
_DIGITS = re.compile(r"[0-9]{1,19}")
_SHAPE_FUNCTIONS = frozenset(
    """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs Eq Ne Lt Le Gt Ge Not And Or
    Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan floor ceiling
    true false BooleanTrue BooleanFalse True False oo FloorDiv ModularIndexing Where
    PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
    FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt
    RoundToInt RoundDecimal ToFloat Identity
    """.split()  # noqa: SIM905 - a list of words
)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_NUMBERS = frozenset({"Integer", "Float", "Rational"})
_KEYWORDS = frozenset({"positive", "integer", "nonnegative", "nonzero", "evaluate", "precision"})
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Load)
_SIGNS = (ast.operator, ast.unaryop, ast.cmpop)


def is_shape_expression(text: str) -> bool:
    """Whether `text` is an expression of sizes that is harmless and small when it is evaluated."""
    if len(text) > LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd syntax, such as a number that is called
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for count, (node, depth, powered) in enumerate(_walk(tree)):
        if count > MOST_NODES or depth > DEEPEST or not _plain(node):
            return False
        operands = _power(node)
        if operands is not None and (powered or not _small(operands[1:])):
            return False
    return True


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, int, bool]]:
    """All nodes, their depths, and whether each stands in a power."""
    waiting = [(tree, 0, False)]
    while waiting:
        node, depth, powered = waiting.pop()
        yield node, depth, powered
        within = powered or _power(node) is not None
        waiting += [(inner, depth + 1, within) for inner in ast.iter_child_nodes(node)]


def _power(node: ast.AST) -> list[ast.expr] | None:
    """Base and exponent where `node` is a power or a shift."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift | ast.RShift):
        return [node.left, node.right]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
        return node.args
    return None


def _small(exponents: list[ast.expr]) -> bool:
    """Whether all are numbers of at most `LARGEST_EXPONENT`."""
    for node in (inner for one in exponents for inner in ast.walk(one)):
        if isinstance(node, ast.Name) and node.id not in _NUMBERS:
            return False
        if isinstance(node, ast.BinOp | ast.Compare):
            return False
        if isinstance(node, ast.Constant) and not _at_most(node.value, LARGEST_EXPONENT):
            return False
    return True


def _at_most(value: object, most: int) -> bool:
    if isinstance(value, str):
        return _DIGITS.fullmatch(value) is not None and int(value) <= most
    return isinstance(value, int | float) and abs(value) <= most


def _plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _SHAPE_FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _SHAPE_FUNCTIONS
    if isinstance(node, ast.keyword):
        bits = isinstance(node.value, ast.Constant) and _at_most(node.value.value, 64)
        return node.arg in _KEYWORDS and (node.arg != "precision" or bits)
    if isinstance(node, ast.Constant):
        symbol = isinstance(node.value, str) and _SYMBOL.fullmatch(node.value) is not None
        return symbol or _at_most(node.value, LARGEST)
    return isinstance(node, (*_ARITHMETIC, *_SIGNS))

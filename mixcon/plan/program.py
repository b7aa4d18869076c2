"""Reads a compiled program: collectives, largest array, the compiler's estimate; loops multiplied out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")
OPERATION = re.compile(r" = (.*?) ([a-z][a-z0-9-]*)\((.*)")  # layouts have brackets too, but none after a space


@dataclasses.dataclass
class Program:
    """What one compiled step does, loops multiplied out."""

    collectives: dict[str, dict[str, float]]  # kind -> {"count", "bytes"}: what each chip sends or receives, per step
    arrays: frozenset[int]  # sizes in elements of all arrays of the program
    cycles: float  # sum of the compiler's estimates; 0 where it gives none

    @property
    def largest(self) -> int:
        """Elements of the largest array anywhere in the program."""
        return max(self.arrays, default=0)


def read_program(text: str) -> Program:
    """Parse a compiled module's text."""
    bodies = dict(computations(text))
    collectives: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0.0, "bytes": 0.0})
    arrays: set[int] = set()
    cycles = 0.0
    entry = next(name for name in bodies if name.startswith("ENTRY"))
    todo = [(entry, 1.0)]
    while todo:
        name, times = todo.pop()
        for line in bodies[name]:
            operation = OPERATION.search(line)
            if operation is None:
                continue
            result, opcode, rest = operation.groups()
            arrays.update(elements(dims) for _, dims in ARRAY.findall(result))
            kind = opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sizes = [
                    BYTES[t] * elements(d) for t, d in ARRAY.findall(result) if d or not opcode.endswith("-start")
                ]
                size = sum(sizes) // 2 if opcode.endswith("-start") else sum(sizes)  # it lists operands and results
                collectives[kind]["count"] += times
                collectives[kind]["bytes"] += times * size
            estimate = re.search(r'"estimated_cycles":"(\d+)"', rest)
            cycles += times * int(estimate.group(1)) if estimate else 0
            if opcode == "while":
                body, condition = (re.search(key + r"=(%?[\w.\-]+)", rest) for key in ("body", "condition"))
                if body and condition:
                    todo.append((body.group(1), times * trips(bodies[condition.group(1)])))
            elif opcode in ("call", "conditional"):
                todo += [(found, times) for found in re.findall(r"to_apply=(%?[\w.\-]+)", rest) if found in bodies]
    return Program(dict(collectives), frozenset(arrays), cycles)


def computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            head = line.split(" (")[0]
            name, lines = head, []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def trips(condition: list[str]) -> int:
    constants = [int(n) for line in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", line)]
    return max(constants, default=1)


def elements(dims: str) -> int:
    return math.prod(int(d) for d in dims.split(",") if d)

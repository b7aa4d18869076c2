"""What happens to files: bytes changed, lost, doubled or cut off, in the ways that break readers."""

import hypothesis.strategies as st

TELLING = [0, 1, 9, 10, 34, 45, 57, 91, 93, 123, 125, 127, 128, 255]  # bytes that mean something to some format
INTEGERS = [0, 1, 60_000, 2**31 - 1, 2**32 - 1]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], most: int = 6) -> bytes:
    """One of the seeds, changed in one to `most` places; near its ends more often than elsewhere."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, most))):
        size = len(data)
        place = draw(st.one_of(st.integers(0, 64), st.integers(0, size), st.integers(max(size - 400, 0), size)))
        place = min(place, max(size - 1, 0))
        kind = draw(st.sampled_from(["set", "set", "set", "drop", "insert", "number", "cut"]))
        if kind == "set" and size:
            data[place] = draw(st.one_of(st.sampled_from(TELLING), st.integers(0, 255)))
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 8))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "number":
            order = draw(st.sampled_from(["big", "little"]))
            data[place : place + 4] = draw(st.sampled_from(INTEGERS)).to_bytes(4, order)
        elif kind == "cut":
            del data[place:]
    return bytes(data)


# JSON as it comes from outside, with what readers do not expect.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([2**40, -1, "", "1", "é"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def changed(draw: st.DrawFn, value: object) -> object:
    """A JSON value with one place inside it replaced, emptied or removed."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or draw(st.integers(0, 3)) == 0:
        return draw(anything)
    key = draw(st.sampled_from(inner))
    copy = dict(value) if isinstance(value, dict) else list(value)  # type: ignore[call-overload]
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = draw(changed(copy[key]))
    return copy

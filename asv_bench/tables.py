"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(
    headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Return a table, its columns padded; those at the positions `left` to the left."""
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rules = (
        "-" * (width + 2) if i in left else "-" * (width + 1) + ":"
        for i, width in enumerate(widths)
    )
    return "\n".join([line(headings), f"|{'|'.join(rules)}|", *map(line, table[1:])])

"""Draw the rooms of the package, from the order that tests/repo/test_rooms.py holds.

python docs/rooms.py [--out docs/assets/rooms.png]
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.repo.test_rooms import MODULES, ROOMS, imports, room_of  # noqa: E402

INK, EDGE, FILL = "#222222", "#0072B2", "#eaf3f9"
WIDTH, ROW = 11.0, 0.95


def outer(room: str) -> str:
    """The room that a room within a room belongs to."""
    return room.partition(".")[0]


def floors() -> list[list[str]]:
    """Rooms that do not use each other share a floor, as low as it can be."""
    rooms = list(
        dict.fromkeys(outer(room) for room in ROOMS if not outer(room).startswith("__") and outer(room) != "_version")
    )
    uses: dict[str, set[str]] = {room: set() for room in rooms}
    for module in MODULES:
        here = outer(room_of(module))
        if here in uses:
            uses[here] |= {outer(room_of(name)) for name in imports(module) if name} & set(rooms) - {here}
    level: dict[str, int] = {}
    for room in rooms:
        level[room] = max((level[below] + 1 for below in uses[room] if below in level), default=0)
    return [[room for room in rooms if level[room] == floor] for floor in range(max(level.values()) + 1)]


def size(room: str) -> tuple[int, int]:
    """Files and lines of a room."""
    files = [path for module, path in MODULES.items() if outer(room_of(module)) == room]
    return len(files), sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def purpose(room: str) -> str:
    """The first line of what a room says of itself."""
    told = (ast.get_docstring(ast.parse(MODULES[room].read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda match: match[1] or match[2], told)


def picture() -> Figure:
    """A box for each room, its area not to scale; what is higher uses what is lower."""
    plan = floors()
    figure = Figure(figsize=(WIDTH, ROW * len(plan) + 0.3))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, WIDTH), ylim=(0, ROW * len(plan)))
    axes.axis("off")
    for floor, rooms in enumerate(plan):
        width = (WIDTH - 0.2) / len(rooms)
        for place, room in enumerate(rooms):
            left, low = 0.1 + place * width, floor * ROW + 0.08
            axes.add_patch(
                FancyBboxPatch(
                    (left + 0.06, low),
                    width - 0.12,
                    ROW - 0.16,
                    boxstyle="round,pad=0,rounding_size=0.08",
                    fc=FILL,
                    ec=EDGE,
                )
            )
            files, lines = size(room)
            middle = left + width / 2
            axes.text(middle, low + 0.6, room, ha="center", va="center", fontsize=12, fontweight="bold", color=INK)
            told = "\n".join(textwrap.wrap(purpose(room), int(width * 15)))
            axes.text(middle, low + 0.33, told, ha="center", va="center", fontsize=7.5, color=INK)
            counted = f"{files} file{'s' if files > 1 else ''}, {lines:,} lines"
            axes.text(middle, low + 0.08, counted, ha="center", va="center", fontsize=6.5, color=EDGE)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets" / "rooms.png")
    picture().savefig(parser.parse_args().out, dpi=110)

"""Count modules, import arrows, floors and circles of a checkout: python tools/import_graph.py [FOLDER]

A room is a file or a folder right below swav/. Its floor is the longest way down from it through rooms that it imports.
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import grimp


def room(module: str) -> str:
    """Return the room of a module: its name below the package, or the package's own."""
    return [*module.split("."), "__init__"][1]


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the sets of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            new = arrows.get(ahead.pop(), set()) - found
            found |= new
            ahead += new
        return found

    below = {name: reached(name) for name in arrows}
    groups = {frozenset(other for other in below[name] if name in below.get(other, ())) for name in arrows}
    return [set(group) for group in groups if group]


def main(folder: Path) -> None:
    """Print the counts."""
    sys.path.insert(0, str(folder))
    graph = grimp.build_graph("swav", cache_dir=None)
    modules = sorted(graph.modules)
    arrows = {name: graph.find_modules_directly_imported_by(name) for name in modules}
    rooms: dict[str, set[str]] = {room(name): set() for name in modules}
    for name, others in arrows.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    found = circles(rooms)

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(other) for other in rooms[name]), default=0)

    print(f"modules {len(modules)}, arrows {sum(map(len, arrows.values()))}, circles {len(circles(arrows))}")
    height = "-" if found else max(map(floor, rooms))
    print(f"rooms {len(rooms)}, arrows {sum(map(len, rooms.values()))}, floors {height}, circles {len(found)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())

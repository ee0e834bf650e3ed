"""Odd little architectures on which every engine is held against plain autograd."""

from tests.gallery import flow, layers, linear, losses, norms, sharing, state
from tests.gallery.entry import SEED, Entry

__all__ = ["ENTRIES", "SEED", "Entry"]

ENTRIES: dict[str, Entry] = {
    entry.name: entry for room in (sharing, flow, state, norms, linear, layers, losses) for entry in room.ENTRIES
}

"""The names by which operators call adversaries.

Law: the only place, beside the catalogue, that knows them; no torch, so that the launcher stays small.
"""

from __future__ import annotations

from enum import StrEnum


class Name(StrEnum):
    FREELOADER = "freeloader"
    LAZY_BACKWARD = "lazy-backward"
    WRONG_MERGER = "wrong-merger"
    UPDATE_SKIPPER = "update-skipper"
    POISONER = "poisoner"

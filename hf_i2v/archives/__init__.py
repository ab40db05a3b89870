"""Predictions over whole archives: parts that outlive a kill, tables made of them, events."""

from .events import Event, events_of
from .parts import Parts, PartWriter, units_of, videos_per_unit
from .streams import Streams
from .tables import answer_columns, write_events, write_table

__all__ = [
    "Event",
    "PartWriter",
    "Parts",
    "Streams",
    "answer_columns",
    "events_of",
    "units_of",
    "videos_per_unit",
    "write_events",
    "write_table",
]

"""Ground floor, bytes ⇄ data: every protocol's parsing and rendering. No I/O, no clock."""

"""Ground floor, decisions: pure functions from a frozen snapshot to a frozen decision. No I/O, no clock."""

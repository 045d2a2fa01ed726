"""Worker processes: where models' own code runs, so that a crash, a hang or a leak stays there."""

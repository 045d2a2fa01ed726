"""What a team does all day: try a package, deploy it, move callers to it and back."""

"""Settings: their types, how they are composed, and their errors."""

"""Where matrices come from: checkpoints, adapters, and their differences."""

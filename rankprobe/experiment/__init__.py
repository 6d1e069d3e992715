"""Studies, runs and sweeps: what to train, crash-safe."""

"""Training, independent of the engine: settings, schedule, tasks, run directories, checkpoints."""

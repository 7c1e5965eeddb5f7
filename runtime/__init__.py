"""What the commands stand on: settings, run folders, checkpoints, devices, logs, errors."""

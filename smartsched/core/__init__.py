"""The pure heart: no clock, file, device, process, environment, randomness or logging."""

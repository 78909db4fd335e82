"""What a number is: formats, roundings, casts and accumulators, with no tensor in sight."""

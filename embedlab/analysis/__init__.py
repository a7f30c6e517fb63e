"""What runs, data and decoders look like inside: errors, leakage, layers."""

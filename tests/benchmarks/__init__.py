"""What performance claims are measured with: `make bench`."""

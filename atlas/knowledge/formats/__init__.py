"""Readers of formats: each turns the bytes of a file into a `Document`, or raises ValueError."""

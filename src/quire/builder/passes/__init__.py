"""Passes: each changes the network, reports its matches, and stands in a file of its own with a drawing."""

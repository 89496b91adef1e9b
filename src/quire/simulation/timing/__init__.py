"""How long a step takes: what its calls cost, what devices and links there are, what was measured of them."""

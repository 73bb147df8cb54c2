"""Mixed precision: which layer gets how many bits, from synthetic images and a budget."""

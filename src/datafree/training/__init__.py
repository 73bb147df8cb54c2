"""Fine-tuning a quantized student under its teacher, on images a generator dreams up meanwhile."""

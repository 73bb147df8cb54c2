"""What was lost, told without labels: held-out images, features of them, an estimate."""

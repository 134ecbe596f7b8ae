"""Measurements: one module per question, each with its claim at the top; figures are kept in results/."""

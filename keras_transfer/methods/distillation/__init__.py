"""Distillation: teachers, and the kinds of losses by which a student learns from them."""

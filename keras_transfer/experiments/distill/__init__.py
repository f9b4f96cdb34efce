"""Distillation of a teacher into a student, and the report on whether it pays."""

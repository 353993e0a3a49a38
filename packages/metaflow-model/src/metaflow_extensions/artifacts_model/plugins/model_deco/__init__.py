"""`@model`: models saved in one step and loaded in any other."""

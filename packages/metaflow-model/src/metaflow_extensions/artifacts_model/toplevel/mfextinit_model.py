toplevel = "model_toplevel"

toplevel = "checkpoint_toplevel"

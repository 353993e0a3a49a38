toplevel = "core_toplevel"

toplevel = "hf_toplevel"

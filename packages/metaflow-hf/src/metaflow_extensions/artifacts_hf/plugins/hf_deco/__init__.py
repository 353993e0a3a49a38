"""`@huggingface_hub`: repos of the Hugging Face Hub, kept in the datastore."""

"""`@huggingface_hub`: repos of the Hugging Face Hub, stored in the datastore."""

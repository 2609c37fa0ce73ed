"""Where bytes come from: files, http(s) and the Hugging Face Hub."""

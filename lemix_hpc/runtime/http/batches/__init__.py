"""Files and batches over HTTP (`/v1/files`, `/v1/batches`), in the form of OpenAI's API."""

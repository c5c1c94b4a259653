"""One model for many: an HTTP server in OpenAI's shapes, safe by default, and the web page."""

"""The web page: Gradio's parts where they serve, small scripts of our own where they do not, one `Backend` behind both."""

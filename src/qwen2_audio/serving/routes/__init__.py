"""The routes, one file a family; each has `router(backend, settings, media)`."""

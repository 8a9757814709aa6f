"""Pictures and videos: files -> decoded, scaled RGB."""

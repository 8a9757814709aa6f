"""Media: image and video files -> decoded and scaled RGB images."""

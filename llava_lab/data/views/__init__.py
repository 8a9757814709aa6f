"""3. Views: a picture or a video -> the square views that an encoder takes."""

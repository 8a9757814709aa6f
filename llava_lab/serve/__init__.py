"""Models at work: answer, caption, prefer, chat, and engines."""

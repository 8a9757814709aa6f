"""Make data: captions, boxes and questions that others published -> LLaVA-format rows."""

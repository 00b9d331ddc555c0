"""Operations with a plain PyTorch reference and, where it pays, a faster equal beside it."""

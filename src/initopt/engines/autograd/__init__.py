"""Operations whose weights are scaled, and derivatives along the scales."""
